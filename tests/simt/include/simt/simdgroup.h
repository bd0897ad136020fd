// Barriers, and the operations between the 32 lanes of a simdgroup.
#pragma once

#include "simt/math.h"

namespace metal {

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
};
SIMT_DEVICE constexpr inline mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(uint(a) | uint(b));
}

SIMT_DEVICE inline void threadgroup_barrier(mem_flags flags, SIMT_SITE) {
  rt::threadgroup_barrier(uint(flags), SIMT_AT);
}
SIMT_DEVICE inline void simdgroup_barrier(mem_flags flags, SIMT_SITE) {
  rt::simdgroup_barrier(uint(flags), SIMT_AT);
}

// Each lane gets the value of lane `source`, an expression of `lane`. Apple
// GPUs have an instruction for all of these but the first.
#define SIMT_SHUFFLE(name, argument, source, op)                   \
  template <class T>                                               \
  SIMT_DEVICE inline T name(T value, ushort argument, SIMT_SITE) { \
    return rt::exchange<T, rt::op>(                                \
        value, [=](int lane) { return int(source); }, SIMT_AT);    \
  }
SIMT_SHUFFLE(simd_shuffle, from, from, kShuffle)
SIMT_SHUFFLE(simd_broadcast, from, from, kFixed)
SIMT_SHUFFLE(simd_shuffle_xor, mask, lane ^ mask, kFixed)
SIMT_SHUFFLE(simd_shuffle_down, by, lane + by < 32 ? lane + by : lane, kFixed)
SIMT_SHUFFLE(simd_shuffle_up, by, lane >= by ? lane - by : lane, kFixed)
SIMT_SHUFFLE(quad_shuffle, from, (lane & ~3) + from, kFixed)
SIMT_SHUFFLE(quad_shuffle_xor, mask, lane ^ mask, kFixed)
SIMT_SHUFFLE(quad_broadcast, from, (lane & ~3) + from, kFixed)
#undef SIMT_SHUFFLE

template <class T>
SIMT_DEVICE inline T simd_broadcast_first(T value, SIMT_SITE) {
  return simd_broadcast(value, 0, SIMT_AT);
}

template <class T>
SIMT_DEVICE inline T simd_shuffle_and_fill_up(T value,
                                              T fill,
                                              ushort by,
                                              SIMT_SITE) {
  T shifted = simd_shuffle_up(value, by, SIMT_AT);
  return rt::lane() >= by ? shifted : fill;
}

template <class T>
SIMT_DEVICE inline T simd_sum(T value, SIMT_SITE) {
  return rt::sum<T>(value, SIMT_AT);
}

#define SIMT_REDUCE(name, widest, expression)           \
  template <class T>                                    \
  SIMT_DEVICE inline T name(T value, SIMT_SITE) {       \
    for (ushort mask = widest; mask > 0; mask /= 2) {   \
      T other = simd_shuffle_xor(value, mask, SIMT_AT); \
      value = T(expression);                            \
    }                                                   \
    return value;                                       \
  }
SIMT_REDUCE(simd_max, 16, value < other ? other : value)
SIMT_REDUCE(simd_min, 16, other < value ? other : value)
SIMT_REDUCE(simd_product, 16, value* other)
SIMT_REDUCE(simd_and, 16, value& other)
SIMT_REDUCE(simd_or, 16, value | other)
SIMT_REDUCE(simd_xor, 16, value ^ other)
SIMT_REDUCE(quad_sum, 2, value + other)
#undef SIMT_REDUCE

template <class T>
SIMT_DEVICE inline T simd_prefix_inclusive_sum(T value, SIMT_SITE) {
  for (ushort by = 1; by < 32; by *= 2) {
    T before = simd_shuffle_up(value, by, SIMT_AT);
    value = rt::lane() >= by ? T(value + before) : value;
  }
  return value;
}
template <class T>
SIMT_DEVICE inline T simd_prefix_exclusive_sum(T value, SIMT_SITE) {
  return T(simd_prefix_inclusive_sum(value, SIMT_AT) - value);
}

}  // namespace metal

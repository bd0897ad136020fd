// An NVIDIA GPU, through NVRTC with --device-as-default-execution-space: the
// same kernels on real SIMT hardware, where address spaces are not types. The
// whole unit is in a namespace, because CUDA has a float4 of its own.
#pragma once

using int8_t = signed char;
using uint8_t = unsigned char;
using uchar = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using ushort = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using uint = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
using ulong = unsigned long;

#define device
#define threadgroup
#define thread
#define constant const
#define kernel

#define SIMT_DEVICE
#define SIMT_ANY_SPACE
#define SIMT_STATIC_CONST
#define SIMT_EACH_SPACE(f)
#define SIMT_BUILTIN(name) ::name##f
#define SIMT_COPY memcpy

// No sites: compute-sanitizer finds lines by itself.
#define SIMT_SITE int line = 0, int file = 0
#define SIMT_AT line, file

// half converts from float implicitly, as in Metal. An operation on two halves,
// or on a half and an integer, gives a half; one with a float gives a float.
struct half {
  ushort bits;

  half() = default;
  half(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
  half(int value) : half(float(value)) {}
  half(uint value) : half(float(value)) {}
  half(double value) : half(float(value)) {}

  operator float() const {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
};

#define SIMT_HALF_OP(op)                            \
  inline half operator op(half a, half b) {         \
    return half(float(a) op float(b));              \
  }                                                 \
  template <class I, class = decltype(I(1) % 2)>    \
  inline half operator op(half a, I b) {            \
    return a op half(float(b));                     \
  }                                                 \
  template <class I, class = decltype(I(1) % 2)>    \
  inline half operator op(I a, half b) {            \
    return half(float(a)) op b;                     \
  }                                                 \
  inline float operator op(half a, float b) {       \
    return float(a) op b;                           \
  }                                                 \
  inline float operator op(float a, half b) {       \
    return a op float(b);                           \
  }                                                 \
  inline half& operator op## = (half & a, half b) { \
    return a = a op b;                              \
  }
SIMT_HALF_OP(+)
SIMT_HALF_OP(-)
SIMT_HALF_OP(*)
SIMT_HALF_OP(/)
#undef SIMT_HALF_OP

constexpr half operator-(half a) {
  return __builtin_bit_cast(half, ushort(a.bits ^ 0x8000));
}

namespace rt {

constexpr uint kAllLanes = 0xffffffffu;

inline int thread_index() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
inline int lane() {
  return thread_index() & 31;
}

inline void threadgroup_barrier(uint, SIMT_SITE) {
  __syncthreads();
}
inline void simdgroup_barrier(uint, SIMT_SITE) {
  __syncwarp();
}

enum Op { kShuffle, kFixed };

template <typename T, Op = kFixed, typename From>
inline T exchange(T value, From from, SIMT_SITE) {
  constexpr int kWords = (sizeof(T) + 3) / 4;
  uint words[kWords] = {};
  memcpy(words, &value, sizeof(T));
  int source = from(lane()) & 31;
  for (int i = 0; i < kWords; ++i) {
    words[i] = __shfl_sync(kAllLanes, words[i], source);
  }
  memcpy(&value, words, sizeof(T));
  return value;
}

template <typename T>
inline T sum(T value, SIMT_SITE) {
  for (int mask = 16; mask > 0; mask /= 2) {
    value = T(value + exchange(value, [=](int l) { return l ^ mask; }));
  }
  return value;
}

inline void multiply_add_8x8(float a0,
                             float a1,
                             float b0,
                             float b1,
                             float& d0,
                             float& d1,
                             int row,
                             int column,
                             SIMT_SITE) {
  auto lane_of = [](int r, int c) {
    return (r & 4) << 2 | (r & 3) << 1 | (c & 4) << 1 | (c & 2) >> 1;
  };
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    float a = __shfl_sync(kAllLanes, k & 1 ? a1 : a0, lane_of(row, k));
    int from = lane_of(k, column);
    d0 += a * __shfl_sync(kAllLanes, b0, from);
    d1 += a * __shfl_sync(kAllLanes, b1, from);
  }
}

}  // namespace rt

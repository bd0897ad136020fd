// From a value known at run time to a template argument. Everything that is
// compiled once for each instruction set has internal linkage: the linker must
// never merge code of one with code of another.
#pragma once

#include <cstddef>
#include <iterator>
#include <utility>

#include "csrc/core/format.h"
#include "csrc/cpu/codes-inl.h"
#include "csrc/cpu/kernels.h"

namespace nibble::cpu {
namespace {

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

constexpr int smaller(int a, int b) {
  return a < b ? a : b;
}

// Calls fn with Int<value>, if the array kValues has this value. Inlined: left
// to GCC 12, the functions that fn calls are inlined differently.
template <const auto& kValues, typename Fn, size_t... kAt>
[[gnu::always_inline]] inline void with_value(int value,
                                              Fn&& fn,
                                              std::index_sequence<kAt...>) {
  static_cast<void>(
      ((value == kValues[kAt] && (fn(Int<kValues[kAt]>{}), true)) || ...));
}

// Calls fn with Int<bits>.
template <typename Fn>
void with_bits(int bits, Fn&& fn) {
  with_value<kBits>(bits, fn, std::make_index_sequence<std::size(kBits)>{});
}

// Calls fn with the type of the format's codes.
template <typename Fn>
void with_codes(QuantFormat format, Fn&& fn) {
  with_bits(format.bits,
            [&](auto bits) { fn(IntegerCodes<decltype(bits)::value>{}); });
}

// True if codes of this width never straddle bytes. Only such codes have
// a packed layout, and integer products of one row that need no panel.
constexpr bool lie_in_bytes(int bits) {
  return bits == 2 || bits == 4 || bits == 8;
}

// Calls fn with Int<group size>.
template <typename Fn>
void with_group(int group_size, Fn&& fn) {
  with_value<kGroupSizes>(
      group_size, fn, std::make_index_sequence<std::size(kGroupSizes)>{});
}

template <Dtype kValue>
struct DtypeTag {
  static constexpr Dtype value = kValue;
};

// Calls fn with DtypeTag<dtype>.
template <typename Fn>
void with_dtype(Dtype dtype, Fn&& fn) {
  switch (dtype) {
    case Dtype::kFloat32:
      return fn(DtypeTag<Dtype::kFloat32>{});
    case Dtype::kFloat16:
      return fn(DtypeTag<Dtype::kFloat16>{});
    case Dtype::kBFloat16:
      return fn(DtypeTag<Dtype::kBFloat16>{});
  }
}

// Calls fn with Int<value>, for value in 1..kMax.
template <int kMax, typename Fn>
void with_int(int value, Fn&& fn) {
  if constexpr (kMax > 1) {
    if (value < kMax) {
      return with_int<kMax - 1>(value, fn);
    }
  }
  fn(Int<kMax>{});
}

}  // namespace
}  // namespace nibble::cpu

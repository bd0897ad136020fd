// From a value known at run time to a template argument. Everything that is
// compiled once for each instruction set has internal linkage: the linker must
// never merge code of one with code of another.
#pragma once

#include "csrc/cpu/codes-inl.h"
#include "csrc/cpu/kernels.h"

namespace nibble::cpu {
namespace {

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

template <class T>
struct Type {
  using Of = T;
};

constexpr int smaller(int a, int b) {
  return a < b ? a : b;
}

// Calls fn with Int<bits>.
template <typename Fn>
void with_bits(int bits, Fn&& fn) {
  switch (bits) {
    case 1:
      return fn(Int<1>{});
    case 2:
      return fn(Int<2>{});
    case 3:
      return fn(Int<3>{});
    case 4:
      return fn(Int<4>{});
    case 5:
      return fn(Int<5>{});
    case 6:
      return fn(Int<6>{});
    case 8:
      return fn(Int<8>{});
  }
}

// Calls fn with the type of the format's codes.
template <typename Fn>
void with_codes(QuantFormat format, Fn&& fn) {
  switch (format.info().element) {
    case Element::kInteger:
      return with_bits(format.bits, [&](auto bits) {
        fn(IntegerCodes<decltype(bits)::value>{});
      });
    case Element::kE2m1:
      return fn(E2m1Codes{});
    case Element::kE4m3:
      return fn(E4m3Codes<>{});
  }
}

// True if codes of this width never straddle bytes. Only such codes have
// integer products of one row that need no panel.
constexpr bool lie_in_bytes(int bits) {
  return bits == 2 || bits == 4 || bits == 8;
}

// Calls fn with the type of the format's codes, if integer products know it.
template <typename Fn>
void with_integers(QuantFormat format, Fn&& fn) {
  with_codes(format, [&](auto codes) {
    if constexpr (decltype(codes)::kIntegers) fn(codes);
  });
}

// Calls fn with Int<group size>; kLeast is the smallest.
template <int kLeast, typename Fn>
void with_group(int group_size, Fn&& fn) {
  switch (group_size) {
    case 16:
      if constexpr (kLeast <= 16) fn(Int<16>{});
      return;
    case 32:
      return fn(Int<32>{});
    case 64:
      return fn(Int<64>{});
    case 128:
      return fn(Int<128>{});
  }
}

template <Dtype kValue>
struct DtypeTag {
  static constexpr Dtype value = kValue;
};

// Calls fn with DtypeTag<dtype>, for a type of activations.
template <typename Fn>
[[gnu::always_inline]] inline void with_dtype(Dtype dtype, Fn&& fn) {
  switch (dtype) {
    case Dtype::kFloat32:
      return fn(DtypeTag<Dtype::kFloat32>{});
    case Dtype::kFloat16:
      return fn(DtypeTag<Dtype::kFloat16>{});
    case Dtype::kBFloat16:
      return fn(DtypeTag<Dtype::kBFloat16>{});
    case Dtype::kE8m0:
    case Dtype::kE4m3:
      return;
  }
}

// The same for a type of scales that these codes have.
template <class Q, typename Fn>
[[gnu::always_inline]] inline void with_scale_dtype(Dtype dtype, Fn&& fn) {
  if constexpr (Q::kBiased) {
    with_dtype(dtype, fn);
  } else if (dtype == Dtype::kE8m0) {
    fn(DtypeTag<Dtype::kE8m0>{});
  } else {
    fn(DtypeTag<Dtype::kE4m3>{});
  }
}

// Calls fn with Int<0>, Int<1> .. Int<kCount - 1>.
template <int kCount, int kFirst = 0, typename Fn>
[[gnu::always_inline]] inline void each_int(Fn&& fn) {
  if constexpr (kFirst < kCount) {
    fn(Int<kFirst>{});
    each_int<kCount, kFirst + 1>(fn);
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

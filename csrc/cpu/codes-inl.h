// The codes of a format as a type. Decoding asks it for the width and for the
// numbers; a weight is scale * number + bias. with_codes() of dispatch-inl.h
// gives the type of a format.
#pragma once

namespace nibble::cpu {
namespace {

// Codes that are unsigned integers.
template <int kWidth>
struct IntegerCodes {
  static constexpr int kBits = kWidth;

  // The numbers of a vector of codes; V is a SIMD facade.
  template <class V>
  static typename V::F numbers(typename V::I codes) {
    return V::to_float(codes);
  }
};

}  // namespace
}  // namespace nibble::cpu

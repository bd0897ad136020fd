// Each marked line breaks a rule of Metal that C++ for OpenCL does not have.
#pragma once

#include <metal_stdlib>

namespace nibble {

using namespace metal;

inline float unqualified_parameter(const float* from) {  // no space
  return from[0];
}

template <typename T>
inline T unqualified_reference(const T& value) {  // no space
  return value;
}

inline float unqualified_local(const device float* from) {
  float here = from[0];
  float* there = &here;  // no space
  return there[0];
}

struct Unqualified {
  float* member;  // no space
};

constexpr int program_scope = 3;  // program scope

struct Static {
  static constexpr int member = 4;  // program scope
};

struct Virtual {
  virtual float method() thread { return 0.0f; }  // virtual
};

inline int recursion(int n) {  // recursion
  return n == 0 ? 0 : recursion(n - 1);
}

template <typename T>
inline T recursion_of_a_template(T n) {  // recursion
  return n == T(0) ? n : recursion_of_a_template(T(n - T(1)));
}

// These are correct.
constant constexpr int in_constant = 3;

inline float qualified(const device float* from, thread float& to) {
  threadgroup float* nothing = nullptr;
  (void)nothing;
  auto deduced = from;
  to = deduced[0];
  return to;
}

}  // namespace nibble

// The table of an instruction set's layer kernels.
#pragma once

#include "csrc/cpu/activations-inl.h"
#include "csrc/cpu/attention-inl.h"
#include "csrc/cpu/dense-inl.h"
#include "csrc/cpu/recurrence-inl.h"

namespace nibble::cpu {
namespace {

template <class V>
constexpr LayerKernels make_layer_kernels() {
  return {widen<V>,
          rms_norm<V>,
          rotate<V>,
          sum_exponentials<V>,
          find_largest<V>,
          add_and_round<V>,
          swiglu_and_round<V>,
          activate<V>,
          layer_norm<V>,
          recur<V>,
          scan<V>,
          convolve<V>,
          multiply_dense<V>,
          attend_scratch<V>,
          attend<V>,
          divide<V>};
}

}  // namespace
}  // namespace nibble::cpu

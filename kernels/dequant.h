// From codes to values: w_hat = scale * code + bias, in float.
#pragma once

#include "kernels/packing.h"
#include "kernels/shared.h"

namespace nibble {

// Value i of a run. The shift that code_in_place() leaves goes into the scale,
// which the compiler keeps for all the words of a run.
template <int bits>
inline float dequantize_code(const thread uint* words,
                             int i,
                             float scale,
                             float bias) {
  return fma(
      float(code_in_place<bits>(words, i)), scale * unplace<bits>(i), bias);
}

// One quantized matrix [N, K] in device memory.
template <typename S, int bits, int group_size>
struct QuantizedMatrix {
  const device uint* words;
  const device S* scales;
  const device S* biases;
  int K;

  // Matrix `index` of a stack of matrices [N, K].
  QuantizedMatrix(const device uint* w,
                  const device S* s,
                  const device S* b,
                  int N,
                  int K_,
                  int index)
      : K(K_) {
    const size_t rows = size_t(index) * size_t(N);
    words = w + rows * size_t(words_of(K, bits));
    scales = s + rows * size_t(K / group_size);
    biases = b + rows * size_t(K / group_size);
  }

  // The words from code k of row `row` on; k begins a run.
  const device uint* words_at(int row, int k) const thread {
    return words + size_t(row) * size_t(words_of(K, bits)) + words_of(k, bits);
  }

  // The index in `scales` and `biases` of the group of code k of row `row`.
  size_t group_at(int row, int k) const thread {
    return size_t(row) * size_t(K / group_size) + size_t(k / group_size);
  }
};

// Which matrix of weights batch `batch` of the activations uses.
inline int weight_of(constant MatmulParams& params, uint batch) {
  return (int(batch) / params.w_repeat) % params.w_count;
}

}  // namespace nibble

// From codes to values: w_hat = scale * code + bias, in float.
#pragma once

#include "kernels/packing.h"
#include "kernels/shared.h"

namespace nibble {

// Value i of a run whose scale and bias are `affine`. The shift that
// code_in_place() leaves goes into the scale, which the compiler keeps for all
// the words of a run.
template <int bits>
inline float dequantize_code(const thread uint* words, int i, float2 affine) {
  return fma(float(code_in_place<bits>(words, i)),
             affine.x * unplace<bits>(i),
             affine.y);
}

// One quantized matrix [N, K] in device memory. A symmetric one has no biases:
// its codes stand for code - 2^(bits - 1), and `biases` is never read.
template <typename S, int bits, int group_size, bool symmetric>
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

  // Scale and bias of the group of code k of row `row`.
  float2 affine_at(int row, int k) const thread {
    const size_t group =
        size_t(row) * size_t(K / group_size) + size_t(k / group_size);
    const float scale = float(scales[group]);
    const float bias =
        symmetric ? scale * -float(1 << (bits - 1)) : float(biases[group]);
    return float2(scale, bias);
  }
};

// Which matrix of weights batch `batch` of the activations uses.
inline int weight_of(constant MatmulParams& params, uint batch) {
  return int(batch) % params.w_count;
}

}  // namespace nibble

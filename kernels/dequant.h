// From codes to values: a matrix in device memory, and its w_hat in float.
#pragma once

#include "kernels/format.h"
#include "kernels/packing.h"
#include "kernels/shared.h"

namespace nibble {

// w_hat of codes j to j + 3 of `codes`, rounded to T.
template <typename T, typename Q>
NIBBLE_INLINE vec<T, 4> four_values(const thread typename Q::Codes& codes,
                                    int j,
                                    typename Q::Parameters affine) {
  vec<T, 4> values;
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; ++i) {
    values[i] = T(Q::value(codes, j + i, affine));
  }
  return values;
}

// Groups of `codes` neighbouring codes, which begin a group or lie inside one.
template <typename Q>
NIBBLE_INLINE constexpr int groups_of(int codes) {
  return codes > Q::kGroupSize ? codes / Q::kGroupSize : 1;
}

// One quantized matrix [N, K] in device memory.
template <typename Q>
struct QuantizedMatrix {
  typename Q::Arrays arrays;
  int K;

  // Matrix `index` of a stack of matrices [N, K].
  NIBBLE_INLINE QuantizedMatrix(typename Q::Arrays stack,
                                int N,
                                int K_,
                                int index)
      : arrays(stack.from(
            size_t(index) * size_t(N) * size_t(words_of(K_, Q::kBits)),
            size_t(index) * size_t(N) * size_t(K_ / Q::kGroupSize))),
        K(K_) {}

  // The words of row `row` from code k on; k begins a run.
  NIBBLE_INLINE const device uint* words_at(int row, int k) const thread {
    return arrays.words + size_t(row) * size_t(words_of(K, Q::kBits)) +
           words_of(k, Q::kBits);
  }

  // Scale and bias of the group of code k of row `row`.
  NIBBLE_INLINE typename Q::Parameters affine_at(int row, int k) const thread {
    return Q::affine_at(
        arrays,
        size_t(row) * size_t(K / Q::kGroupSize) + size_t(k / Q::kGroupSize));
  }
};

// The weight matrix that batch `batch` of the activations uses.
NIBBLE_INLINE int weight_of(constant MatmulParams& params, uint batch) {
  return int(batch) % params.w_count;
}

}  // namespace nibble

// The layers between the products, on all cores: RMSNorm, RoPE and SwiGLU; and
// log-sum-exp, which turns logits into probabilities.
// Accumulated in fp32 and rounded once. Each function blocks until done and is
// safe to call from several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/core/dtype.h"
#include "csrc/cpu/activation.h"

namespace nibble::cpu {

// Rows of contiguous elements in a grid of three dimensions, row-major.
struct RowGrid {
  const void* data;
  int shape[3];
  int64_t strides[3];  // elements

  int64_t size() const { return int64_t{shape[0]} * shape[1] * shape[2]; }
};

struct RmsNorm {
  int D;
  float eps;
  Dtype dtype;  // of x
  Dtype weight_dtype;
  Dtype out_dtype;
};

// The `count` elements at x as floats, then zeros up to whole vectors; nothing
// if x is null.
std::vector<float> as_floats(Dtype dtype, const void* x, int count);

// y [rows, D] = x / sqrt(mean(x^2) + eps) * weight; weight may be null.
void rms_norm(const RmsNorm& problem,
              const RowGrid& x,
              const void* weight,
              void* y);

// y [rows, D] = (x - mean) / sqrt(variance + eps) * weight + bias. weight and
// bias may be null; the types of those that are not are weight_dtype and
// bias_dtype.
struct LayerNorm {
  int D;
  float eps;
  Dtype dtype;  // of x
  Dtype weight_dtype, bias_dtype;
  Dtype out_dtype;
};

void layer_norm(const LayerNorm& problem,
                const RowGrid& x,
                const void* weight,
                const void* bias,
                void* y);

// y = the activation of gate, times up unless up is null.
void activate(const ActivationOptions& options,
              Dtype dtype,
              const void* gate,
              const void* up,
              size_t count,
              void* y);

// Pair i of a row at position p is rotated by the angle p * scale / period[i].
struct Rope {
  int D;     // elements of a row
  int dims;  // the first of them are rotated; even
  bool traditional;
  float scale;
  Dtype dtype;
  // period[i] = base^(2 i / dims), unless periods [dims / 2] are given.
  float base;
  const float* periods;
};

// x [B, heads, L, D] as the grid (B, heads, L); the position of (b, l) is
// offsets[b * offset_stride] + l. y has the same grid with its own strides, and
// may be x.
void rope(const Rope& problem,
          const RowGrid& x,
          const int32_t* offsets,
          int64_t offset_stride,
          const int64_t (&y_strides)[3],
          void* y);

// y [count] = x rounded. After x, whole vectors can be read.
void round(Dtype dtype, const float* x, size_t count, void* y);

// y [rows] = log(sum over j of exp(x[i, j])); x [rows, D], row-contiguous. y
// has the type of x. Bits do not depend on the number of rows or threads.
void log_sum_exp(Dtype dtype, const void* x, int64_t rows, int64_t D, void* y);

// y [rows] = the first index of the largest of each row of x [rows, D],
// row-contiguous; that of the first NaN if there is one.
void arg_max(Dtype dtype, const void* x, int64_t rows, int64_t D, uint32_t* y);

}  // namespace nibble::cpu

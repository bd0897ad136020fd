#include "csrc/cpu/dense.h"

#include <algorithm>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/scratch.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// Columns of y that a thread takes along, for few columns: a tile of weights.
constexpr int kFewColumns = 4;

// Enough chunks for all threads, of whole tiles.
int step_of(int N) {
  int wanted = N / (4 * thread_count()) / kFewColumns * kFewColumns;
  return std::clamp(wanted, kFewColumns, kBlockN);
}

}  // namespace

void multiply(const DenseProduct& p) {
  const LayerKernels& kernels = isa().layers;
  size_t stride = whole_vectors(p.K);
  int64_t most = std::min<int64_t>(p.M, kMaxRows);
  Floats x = make_floats(most * stride);
  const auto* data = static_cast<const uint8_t*>(p.x.data);
  for (int64_t m = 0; m < p.M; m += most) {
    int rows = static_cast<int>(std::min(most, p.M - m));
    parallel_for(rows, [&](int i) {
      int64_t row = m + i, c = row % p.x.shape[2], b = row / p.x.shape[2];
      int64_t at = b / p.x.shape[1] * p.x.strides[0] +
                   b % p.x.shape[1] * p.x.strides[1] + c * p.x.strides[2];
      float* to = x.get() + i * stride;
      kernels.widen(p.dtype, data + at * int64_t(size_of(p.dtype)), p.K, to);
      std::fill(to + p.K, to + stride, 0.0f);
    });
    by_ranges(p.N, step_of(p.N), [&](Range columns) {
      kernels.multiply_dense({rows,
                              p.N,
                              p.K,
                              columns,
                              p.dtype,
                              p.weight_dtype,
                              static_cast<const uint8_t*>(p.w),
                              x.get(),
                              stride,
                              static_cast<const uint8_t*>(p.bias),
                              at(p.y, m * p.N, p.dtype)},
                             thread_floats(kScratchFloats));
    });
  }
}

}  // namespace nibble::cpu

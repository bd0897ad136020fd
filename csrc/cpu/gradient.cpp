#include "csrc/cpu/gradient.h"

#include <algorithm>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/scratch.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// Products b = 0, 1, ... of M rows each, in the order of their matrices.
// matrix(b) is below `matrices`; source(b) is the product's place in x.
template <typename Matrix, typename Source>
MatrixRows by_matrix(
    int products, int matrices, int M, Matrix&& matrix, Source&& source) {
  MatrixRows rows;
  rows.first.assign(matrices + 1, 0);
  for (int b = 0; b < products; ++b) {
    rows.first[matrix(b) + 1] += M;
  }
  for (int i = 0; i < matrices; ++i) {
    rows.first[i + 1] += rows.first[i];
  }
  std::vector<int> next(rows.first.begin(), rows.first.end() - 1);
  rows.x.resize(size_t(products) * M);
  rows.y.resize(size_t(products) * M);
  for (int b = 0; b < products; ++b) {
    int& at = next[matrix(b)];
    for (int m = 0; m < M; ++m, ++at) {
      rows.x[at] = source(b) * M + m;
      rows.y[at] = b * M + m;
    }
  }
  return rows;
}

}  // namespace

MatrixRows rows_by_matrix(const MatmulProblem& p) {
  return by_matrix(
      p.batch.size,
      p.batch.count,
      p.M,
      [&](int b) { return b / p.batch.repeat % p.batch.count; },
      [](int b) { return uint32_t(b); });
}

MatrixRows rows_by_matrix(const GatherProblem& p, const Indices& indices) {
  return by_matrix(
      p.B,
      p.experts,
      p.M,
      [&](int b) { return std::min<uint32_t>(indices.rhs[b], p.experts - 1); },
      [&](int b) { return std::min<uint32_t>(indices.lhs[b], p.rows - 1); });
}

void group_gradients(const Product& p,
                     const MatrixRows& rows,
                     const GradientOperands& o) {
  int matrices = static_cast<int>(rows.first.size()) - 1;
  int row_blocks = (p.N + kGradientRows - 1) / kGradientRows;
  int column_blocks = (p.K + kColumnBlockK - 1) / kColumnBlockK;
  int blocks = row_blocks * column_blocks;
  size_t words = size_t(p.N) * p.format.words_per_row(p.K);
  size_t groups = size_t(p.N) * p.format.groups_per_row(p.K);
  auto bytes = [](const void* a) { return static_cast<const uint8_t*>(a); };
  parallel_for(matrices * blocks, [&](int i) {
    int matrix = i / blocks, n = i % blocks / column_blocks * kGradientRows;
    int k = i % column_blocks * kColumnBlockK;
    Weights w = as_weights({o.w + matrix * words, nullptr, nullptr},
                           p.N,
                           p.K,
                           p.format,
                           p.scale_dtype);
    int first = rows.first[matrix];
    const uint32_t *x = rows.x.data() + first, *y = rows.y.data() + first;
    RowPairs pairs{bytes(p.transpose ? o.dy : o.x),
                   bytes(p.transpose ? o.x : o.dy),
                   p.dtype,
                   p.transpose ? y : x,
                   p.transpose ? x : y,
                   rows.first[matrix + 1] - first};
    isa().kernels.group_gradients(w,
                                  pairs,
                                  {n, std::min(p.N, n + kGradientRows)},
                                  {k, std::min(p.K, k + kColumnBlockK)},
                                  o.scales + matrix * groups,
                                  o.biases + matrix * groups,
                                  thread_floats(kScratchFloats));
  });
}

}  // namespace nibble::cpu

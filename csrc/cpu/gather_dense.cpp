#include "csrc/cpu/gather_dense.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "csrc/cpu/by_expert.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/scratch.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// Rows of x that are widened to fp32 at once: 4 MB with 2048 columns. A group
// fits.
constexpr int kWaveRows = 2 * kMaxRows;
// Columns of a tile of weights.
constexpr int kTileColumns = 4;

// Enough chunks for all threads, of whole tiles.
int step_of(int N, int groups) {
  int64_t wanted = int64_t{N} * groups / (4 * thread_count());
  return std::clamp(static_cast<int>(std::min<int64_t>(wanted, kBlockN)) /
                        kTileColumns * kTileColumns,
                    kTileColumns,
                    kBlockN);
}

}  // namespace

void gather_dense(const DenseGather& d, const Indices& indices) {
  const GatherProblem& p = d.problem;
  const LayerKernels& kernels = isa().layers;
  ByExpert order(p, kMaxRows, indices);
  const std::vector<Group>& groups = order.groups();
  size_t size = size_of(p.dtype), stride = whole_vectors(p.K);
  size_t matrix = size_t(p.N) * p.K * size_of(d.weight_dtype);
  int most = static_cast<int>(std::min<int64_t>(int64_t{p.B} * p.M, kWaveRows));
  Floats x = make_floats(most * stride);
  // Rows that are not neighbours in y are computed here first.
  std::vector<uint8_t> apart(size_t(most) * p.N * size);
  auto* y = static_cast<uint8_t*>(d.y);

  for (size_t g = 0; g < groups.size();) {
    size_t first = g;
    int offset = groups[g].first, rows = 0;
    while (g < groups.size() && rows + groups[g].count <= most) {
      rows += groups[g++].count;
    }
    parallel_for(rows, [&](int i) {
      size_t from = order.source(offset + i) * p.K * size;
      float* to = x.get() + i * stride;
      kernels.widen(p.dtype, static_cast<const uint8_t*>(d.x) + from, p.K, to);
      std::fill(to + p.K, to + stride, 0.0f);
    });
    int count = static_cast<int>(g - first), step = step_of(p.N, count);
    int ranges = (p.N + step - 1) / step;
    parallel_for(count * ranges, [&](int i) {
      const Group& group = groups[first + i / ranges];
      int begin = i % ranges * step, at = group.first - offset;
      Range columns{begin, std::min(p.N, begin + step)};
      bool together = order.together(group);
      uint8_t* out = together ? y + order.target(group.first) * p.N * size
                              : apart.data() + size_t(at) * p.N * size;
      kernels.multiply_dense(
          {group.count,
           p.N,
           p.K,
           columns,
           p.dtype,
           d.weight_dtype,
           static_cast<const uint8_t*>(d.w) + group.expert * matrix,
           x.get() + at * stride,
           stride,
           nullptr,
           out},
          thread_floats(kScratchFloats));
      for (int r = 0; !together && r < group.count; ++r) {
        size_t target = order.target(group.first + r) * p.N + begin;
        std::memcpy(y + target * size,
                    out + (size_t(r) * p.N + begin) * size,
                    (columns.end - begin) * size);
      }
    });
  }
}

}  // namespace nibble::cpu

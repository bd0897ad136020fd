#include "csrc/core/plan/cuda.h"

#include <algorithm>

#include "csrc/core/plan/launch.h"

namespace nibble {
namespace {

// Beyond this number of rows, x passes through the cores more than once and
// MLX's tiles are faster. Measured on an H200 (docs/results/cuda.md).
constexpr int kLastRow = 64;

// From this number of columns on, blocks of fewer threads fill an H200, which
// has 132 multiprocessors. Up to the second number, only blocks of more do.
// Measured at 1024, 4096 and 14336 columns.
constexpr int kManyColumns = 8192;
constexpr int kFewColumns = 2048;

LaunchPlan launch(const MatmulProblem& p, const CudaTile& tile) {
  LaunchPlan launch = launch_of(
      p, Family::kCudaQmmSkinny, tile, {p.columns(), p.M, p.batch.size});
  bind(launch,
       {Operand::kWeight,
        Operand::kScales,
        Operand::kBiases,
        Operand::kX,
        p.epilogue.bias ? Operand::kBias : Operand::kScales,
        p.epilogue.residual ? Operand::kResidual : Operand::kScales,
        Operand::kOut});
  launch.params = as_bytes(params_of(p));
  return launch;
}

// The tiles for this number of rows, or else those for the most.
const CudaTiles& tiles_for(int rows) {
  auto found = std::ranges::find_if(kCudaTiles, [&](const CudaTiles& tiles) {
    return rows <= tiles.some.BM;
  });
  return found == std::end(kCudaTiles) ? *std::prev(found) : *found;
}

}  // namespace

MatmulProblem without_symmetry(MatmulProblem p) {
  if (p.format.mode == Mode::kSymmetric) {
    p.format.mode = Mode::kAffine;
  }
  return p;
}

std::vector<Launches> candidates_on_cuda(const MatmulProblem& problem) {
  MatmulProblem p = without_symmetry(problem);
  if (!p.transpose || !supported_on_cuda(p)) {
    return {};
  }
  const CudaTiles& tiles = tiles_for(p.M);
  if (p.batch_invariant) {
    return {{launch(p, tiles.batch_invariant)}};
  }
  std::vector<CudaTile> order = {tiles.some, tiles.few, tiles.many};
  if (p.N <= kFewColumns) {
    order = {tiles.few, tiles.some, tiles.many};
  } else if (p.N >= kManyColumns) {
    order = {tiles.many, tiles.some, tiles.few};
  }
  order.push_back(tiles.batch_invariant);
  std::vector<Launches> all;
  for (auto tile = order.begin(); tile != order.end(); ++tile) {
    if (std::find(order.begin(), tile, *tile) == tile) {
      all.push_back({launch(p, *tile)});
    }
  }
  return all;
}

bool mlx_is_faster_on_cuda(const MatmulProblem& p) {
  return p.choice.empty() && !p.batch_invariant && merge_rows(p).M > kLastRow;
}

}  // namespace nibble

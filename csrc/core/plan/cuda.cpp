#include "csrc/core/plan/cuda.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "csrc/core/plan/launch.h"
#include "csrc/core/planner.h"

namespace nibble {

namespace {

// Beyond these numbers of rows, of one matrix (with wgmma or without) and of
// each expert on average, a dense product of rounded weights is faster
// (docs/results/cuda.md).
constexpr int kLastRow = 64;
constexpr int kLastWgmmaRow = 1024;
constexpr int kLastExpertRow = 96;

// From this number of rows on, wgmma is faster.
constexpr int kFirstWgmmaRow = 33;

// From this number of columns on, blocks of fewer threads fill an H200, which
// has 132 multiprocessors. Up to the second number, only blocks of more do.
// Measured at 1024, 4096 and 14336 columns (docs/results/cuda.md).
constexpr int kManyColumns = 8192;
constexpr int kFewColumns = 2048;

// CUDA's limit of blocks in the second and third dimension of a grid.
constexpr uint32_t kMostBlocks = 65535;

// True if kernels for CUDA read these weights and activations.
template <typename Problem>
bool is_read(const Problem& p) {
  return supported_by_gpu(p.format, p.K) && p.K % cuda_columns(p.format) == 0 &&
         supported_on_cuda(without_symmetry(p));
}

bool has_wgmma(const MatmulProblem& p, const DeviceProfile& device) {
  return device.wgmma && p.K % kCudaWgmmaStep == 0 && !p.batch_invariant &&
         p.transpose && is_read(p);
}

bool fits(const LaunchPlan& launch) {
  return launch.threadgroups.y <= kMostBlocks &&
         launch.threadgroups.z <= kMostBlocks;
}

// From this number of rows for each expert on, on average, sorted products are
// computed in tiles that read the weights once.
constexpr int kSortedRows = 2;

template <typename Tile>
LaunchPlan launch(const MatmulProblem& problem,
                  Family family,
                  const Tile& tile) {
  MatmulProblem p = without_symmetry(problem);
  LaunchPlan launch =
      launch_of(p, family, tile, {p.columns(), p.M, p.batch.size});
  bind_weights(launch, p.format);
  bind(launch,
       {Operand::kX,
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

// The cycles of a product in such tiles, all waves of blocks together. A step
// takes as long as the tensor cores need for it, which multiply 2048 times in a
// cycle, or the decoding of 64 rows for each group of threads.
double cycles(const MatmulProblem& p,
              const CudaWgmmaTile& tile,
              const DeviceProfile& device) {
  constexpr double kDecoding = 150, kStart = 3000;
  int groups = tile.WN * tile.WK * tile.blocks;
  double products = tile.BM * NIBBLE_WGMMA_ROWS * kCudaWgmmaStep / 2048.0;
  double step = groups * std::max(products, kDecoding);
  uint64_t blocks = tile.grid({p.columns(), p.M, p.batch.size}).volume();
  uint32_t waves = ceil_div(blocks, device.multiprocessors * tile.blocks);
  int steps = p.K / kCudaWgmmaStep / tile.WK;
  return waves * (steps * step + kStart);
}

// The launches in tiles of wgmma, the expected fastest first.
std::vector<LaunchPlan> wgmma_launches(const MatmulProblem& p,
                                       const DeviceProfile& device) {
  if (!has_wgmma(p, device) || p.M < kFirstWgmmaRow) {
    return {};
  }
  std::vector<CudaWgmmaTile> tiles(std::begin(kCudaWgmmaTiles),
                                   std::end(kCudaWgmmaTiles));
  std::ranges::stable_sort(tiles, {}, [&](const CudaWgmmaTile& tile) {
    return cycles(p, tile, device);
  });
  std::vector<LaunchPlan> all;
  for (const CudaWgmmaTile& tile : tiles) {
    all.push_back(launch(p, Family::kCudaQmmWgmma, tile));
  }
  return all;
}

// The tiles of cuda_qmm_skinny for `p`, the default first.
std::vector<CudaTile> skinny_tiles(const MatmulProblem& p) {
  const CudaTiles& tiles = tiles_for(p.M);
  if (p.batch_invariant) {
    return {tiles.batch_invariant};
  }
  std::vector<CudaTile> all = {
      tiles.some, tiles.few, tiles.many, tiles.batch_invariant};
  if (p.N <= kFewColumns) {
    std::swap(all[0], all[1]);
  } else if (p.N >= kManyColumns) {
    std::swap(all[0], all[2]);
  }
  return all;
}

}  // namespace

std::optional<Launches> plan_on_cuda(const MatmulProblem& p,
                                     const DeviceProfile& device) {
  std::vector<Launches> all = candidates_on_cuda(p, device);
  auto chosen = std::ranges::find_if(all, [&](const Launches& launches) {
    return !p.choice.empty() && launches.front().kernel == p.choice;
  });
  if (all.empty()) {
    return std::nullopt;
  }
  return chosen == all.end() ? all.front() : *chosen;
}

std::optional<Launches> plan_on_cuda(const GatherProblem& problem) {
  GatherProblem p = without_symmetry(problem);
  if (!p.transpose || !is_read(p)) {
    return std::nullopt;
  }
  int rows = p.B / p.experts;
  bool sorted = p.M == 1 && p.sorted && rows >= kSortedRows;
  // All of these add up a row in one order, so that no row depends on others.
  CudaTile tile = tiles_for(sorted ? rows : p.M).batch_invariant;
  LaunchPlan launch =
      sorted
          ? launch_of(p,
                      Family::kCudaGatherSorted,
                      tile,
                      {p.N, p.B + (p.experts - 1) * tile.BM})
          : launch_of(p, Family::kCudaGatherQmmSkinny, tile, {p.N, p.M, p.B});
  bind_weights(launch, p.format);
  bind(
      launch,
      {Operand::kX, Operand::kLhsIndices, Operand::kRhsIndices, Operand::kOut});
  launch.params = as_bytes(params_of(p));
  return fits(launch) ? std::optional(Launches{std::move(launch)})
                      : std::nullopt;
}

std::vector<Launches> candidates_on_cuda(const MatmulProblem& p,
                                         const DeviceProfile& device) {
  if (!p.transpose || !is_read(p)) {
    return {};
  }
  std::vector<LaunchPlan> launches = wgmma_launches(p, device);
  std::vector<CudaTile> tiles = skinny_tiles(p);
  for (auto tile = tiles.begin(); tile != tiles.end(); ++tile) {
    if (std::find(tiles.begin(), tile, *tile) == tile) {
      launches.push_back(launch(p, Family::kCudaQmmSkinny, *tile));
    }
  }
  std::vector<Launches> all;
  for (LaunchPlan& one : launches) {
    if (fits(one)) {
      all.push_back({std::move(one)});
    }
  }
  return all;
}

std::optional<Launches> plan_on_cuda(const DequantizeProblem& problem) {
  DequantizeProblem p = without_symmetry(problem);
  if (!is_read(p)) {
    return std::nullopt;
  }
  Elementwise eights{NIBBLE_DEQUANTIZE_THREADS, 8};
  LaunchPlan launch = launch_of(
      p, Family::kCudaDequantize, eights, {static_cast<int64_t>(p.rows) * p.K});
  bind_weights(launch, p.format);
  bind(launch, {Operand::kOut});
  launch.params = as_bytes(DequantizeParams{p.rows, p.K});
  return Launches{std::move(launch)};
}

bool dense_is_faster(const MatmulProblem& p, const DeviceProfile& device) {
  int last = has_wgmma(p, device) ? kLastWgmmaRow : kLastRow;
  return device.api == Api::kCuda && !p.batch_invariant && is_read(p) &&
         merge_rows(p).M > last;
}

bool dense_is_faster(const GatherProblem& p, const DeviceProfile& device) {
  return device.api == Api::kCuda && !p.batch_invariant && is_read(p) &&
         p.sorted && p.M == 1 && p.B / p.experts > kLastExpertRow;
}

}  // namespace nibble

#include "csrc/core/plan/cuda.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "csrc/core/plan/cuda_launch.h"
#include "csrc/core/plan/cuda_wgmma.h"
#include "csrc/core/plan/launch.h"
#include "csrc/core/planner.h"

namespace nibble {

namespace {

// Beyond this number of rows of each expert on average, a dense product of
// rounded weights is faster (docs/results/cuda.md).
constexpr int kLastExpertRow = 96;

// From this number of columns on, blocks of fewer threads fill an H200, which
// has 132 multiprocessors. Up to the second number, only blocks of more do.
// Measured at 1024, 4096 and 14336 columns (docs/results/cuda.md).
constexpr int kManyColumns = 8192;
constexpr int kFewColumns = 2048;

// Between these numbers, from this number of columns of w on, a warp's work is
// long enough for blocks of more columns of y. Measured at 4096 and 14336.
constexpr int kDeepColumns = 8192;

// True if blocks of 32 columns of y are faster where w has many columns. They
// are with 2, 4 and 8 bits in groups of 64 and with nvfp4, and are not with 3
// and 5 bits nor with mxfp4 (docs/results/cuda.md). Others were not measured.
bool takes_deep_blocks(const QuantFormat& format) {
  bool whole = format.bits % 2 == 0 && 32 % format.bits == 0;
  return whole && format.group_size != 32;
}

// The same where y has many columns. With nvfp4 they are slower.
bool takes_wide_blocks(const QuantFormat& format) {
  return takes_deep_blocks(format) && format.info().stores_biases;
}

// From this number of rows on, MLX's kernels for CUDA take blocks of columns,
// at least as many as a group has. It raises "No implementation" for others.
constexpr int kFirstMlxBlock = 8;
constexpr int kMlxColumns = 64;
// Its kernel for fewer rows gave other results from call to call in float32
// with short rows. This many columns are what a warp of it takes at a time.
constexpr int kMlxRowColumns = 512;

// MLX's kernels for CUDA leave the results of matrices of 1 bit unwritten.
bool mlx_reads(const QuantFormat& format) {
  return format.bits > 1;
}

// CUDA's limit of blocks in the second and third dimension of a grid.
constexpr uint32_t kMostBlocks = 65535;

bool fits(const LaunchPlan& launch) {
  return launch.threadgroups.y <= kMostBlocks &&
         launch.threadgroups.z <= kMostBlocks;
}

// From this number of rows for each expert on, on average, sorted products are
// computed in tiles that read the weights once.
constexpr int kSortedRows = 2;

// The tiles for this number of rows, or else those for the most.
const CudaTiles& tiles_for(int rows) {
  auto found = std::ranges::find_if(kCudaTiles, [&](const CudaTiles& tiles) {
    return rows <= tiles.some.BM;
  });
  return found == std::end(kCudaTiles) ? *std::prev(found) : *found;
}

// A launch for the products that choose among experts, without operands: of
// the family for sorted rows if these are. A tile has at most `most` rows.
template <typename Tile>
LaunchPlan gather_launch(const GatherProblem& p,
                         Family any,
                         Family of_sorted,
                         int most = kLastSkinnyRow) {
  int rows = p.B / p.experts;
  bool sorted = p.M == 1 && p.sorted && rows >= kSortedRows;
  // All of these add up a row in one order, so that no row depends on others.
  Tile tile{tiles_for(std::min(sorted ? rows : p.M, most)).batch_invariant};
  return sorted
             ? launch_of(
                   p, of_sorted, tile, {p.N, p.B + (p.experts - 1) * tile.BM})
             : launch_of(p, any, tile, {p.N, p.M, p.B});
}

// True if experts have enough rows for a dense product to be faster.
bool takes_dense_experts(const GatherProblem& p) {
  return !p.batch_invariant && p.sorted && p.M == 1 &&
         p.B / p.experts > kLastExpertRow;
}

// The tiles for `p`, the default first; none if no kernel does.
std::vector<CudaTile> tiles_on_cuda(const MatmulProblem& p) {
  if (!p.transpose || !is_read(p)) {
    return {};
  }
  const CudaTiles& tiles = tiles_for(p.M);
  if (p.batch_invariant) {
    return {tiles.batch_invariant};
  }
  std::vector<CudaTile> all = {
      tiles.some,
      tiles.few,
      takes_wide_blocks(p.format) ? tiles.many : tiles.narrow,
      tiles.deep,
      tiles.batch_invariant};
  if (p.N <= kFewColumns) {
    std::swap(all[0], all[1]);
  } else if (p.N >= kManyColumns) {
    std::swap(all[0], all[2]);
  } else if (p.K >= kDeepColumns && takes_deep_blocks(p.format)) {
    std::swap(all[0], all[3]);
  }
  return all;
}

}  // namespace

std::optional<Launches> plan_on_cuda(const MatmulProblem& p,
                                     const DeviceProfile& device) {
  if (!p.choice.empty()) {
    for (Launches& one : candidates_on_cuda(p, device)) {
      if (one.front().kernel == p.choice) {
        return std::move(one);
      }
    }
  }
  if (wgmma_is_fastest(p, device)) {
    return Launches{wgmma_launches(p, device).front()};
  }
  std::vector<CudaTile> tiles = tiles_on_cuda(p);
  if (tiles.empty()) {
    return std::nullopt;
  }
  LaunchPlan only = cuda_launch(p, tiles.front());
  return fits(only) ? std::optional(Launches{std::move(only)}) : std::nullopt;
}

std::optional<Launches> plan_on_cuda(const GatherProblem& problem) {
  GatherProblem p = without_symmetry(problem);
  if (!p.transpose || !is_read(p)) {
    return std::nullopt;
  }
  LaunchPlan launch = gather_launch<CudaTile>(
      p, Family::kCudaGatherQmmSkinny, Family::kCudaGatherSorted);
  bind_weights(launch, p.format);
  bind(
      launch,
      {Operand::kX, Operand::kLhsIndices, Operand::kRhsIndices, Operand::kOut});
  launch.params = as_bytes(params_of(p));
  return fits(launch) ? std::optional(Launches{std::move(launch)})
                      : std::nullopt;
}

std::optional<Launches> plan_swiglu_on_cuda(const MatmulProblem& problem) {
  MatmulProblem p = without_symmetry(problem);
  if (!p.transpose || !is_read(p) ||
      (!p.batch_invariant && p.M > kMostPairRows)) {
    return std::nullopt;
  }
  CudaPairTile tile{tiles_for(std::min(p.M, kMostPairRows)).batch_invariant};
  LaunchPlan launch =
      launch_of(p, Family::kCudaSwiglu, tile, {p.N, p.M, p.batch.size});
  bind_gate_and_up(launch, p.format);
  bind(launch, {Operand::kX, Operand::kOut});
  launch.params = as_bytes(params_of(p));
  return fits(launch) ? std::optional(Launches{std::move(launch)})
                      : std::nullopt;
}

std::optional<Launches> plan_swiglu_on_cuda(const GatherProblem& problem) {
  GatherProblem p = without_symmetry(problem);
  if (!p.transpose || !is_read(p) || takes_dense_experts(p)) {
    return std::nullopt;
  }
  LaunchPlan launch = gather_launch<CudaPairTile>(
      p, Family::kCudaGatherSwiglu, Family::kCudaSortedSwiglu, kMostPairRows);
  bind_gate_and_up(launch, p.format);
  bind(
      launch,
      {Operand::kX, Operand::kLhsIndices, Operand::kRhsIndices, Operand::kOut});
  launch.params = as_bytes(params_of(p));
  return fits(launch) ? std::optional(Launches{std::move(launch)})
                      : std::nullopt;
}

std::vector<Launches> candidates_on_cuda(const MatmulProblem& p,
                                         const DeviceProfile& device) {
  std::vector<CudaTile> tiles = tiles_on_cuda(p);
  std::vector<Launches> all;
  for (auto tile = tiles.begin(); tile != tiles.end(); ++tile) {
    if (std::find(tiles.begin(), tile, *tile) == tile) {
      LaunchPlan one = cuda_launch(p, *tile);
      if (fits(one)) {
        all.push_back({std::move(one)});
      }
    }
  }
  // The default is the first.
  auto at = wgmma_is_fastest(p, device) ? all.begin() : all.end();
  std::vector<Launches> others;
  for (LaunchPlan& one : wgmma_launches(p, device)) {
    others.push_back({std::move(one)});
  }
  all.insert(at, others.begin(), others.end());
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

bool dense_is_better(const MatmulProblem& problem,
                     const DeviceProfile& device,
                     bool plain) {
  if (device.api != Api::kCuda) {
    return false;
  }
  MatmulProblem p = merge_rows(problem);
  // MLX's own kernel for products that are not transposed rounds twice, and is
  // wrong for several matrices.
  if (!p.transpose) {
    return true;
  }
  if (is_read(p)) {
    return !p.batch_invariant && p.M > kLastSkinnyRow &&
           !wgmma_is_fastest(p, device);
  }
  return !plain || !mlx_reads(p.format) || p.batch.size > 1 ||
         p.M >= kFirstMlxBlock || p.K % kMlxRowColumns != 0;
}

bool dense_is_better(const GatherProblem& p,
                     const DeviceProfile& device,
                     bool plain) {
  if (device.api != Api::kCuda) {
    return false;
  }
  // MLX has no kernel for products that are not transposed.
  if (!p.transpose) {
    return true;
  }
  // With 38 rows, MLX's kernel for float32 was refused by CUDA.
  return is_read(p) ? takes_dense_experts(p)
                    : !plain || !mlx_reads(p.format) || p.M >= kFirstMlxBlock;
}

int columns_for_mlx(const MatmulProblem& p, const DeviceProfile& device) {
  int block = std::max(kMlxColumns, p.format.group_size);
  bool any = device.api != Api::kCuda || !p.transpose ||
             p.M * p.batch.size < kFirstMlxBlock;
  return any ? p.K : static_cast<int>(ceil_div(p.K, block)) * block;
}

}  // namespace nibble

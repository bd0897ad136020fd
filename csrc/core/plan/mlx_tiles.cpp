// MLX 0.32.4's tiles beside ours, by their predicted cost.
#include <algorithm>
#include <cmath>

#include "csrc/core/plan/cost.h"
#include "csrc/core/planner.h"

namespace nibble {
namespace {

// Ours may be slower by this much: a duel on the user's GPU decides about a
// tie.
constexpr double kTolerance = 0.98;

// From this number of rows on, MLX takes tiles for every shape on the GPUs that
// the model knows; 33 on the largest ones.
constexpr int kFirstMlxTile = 17;

constexpr bool is_known(const DeviceProfile& device) {
  return device.generation >= 13 && device.generation <= 16;
}

// Returns the parts of K that MLX's dispatch makes: 512 threadgroups, each of
// whole groups.
int mlx_parts(const MatmulProblem& p, uint64_t tiles) {
  int group = std::max(p.format.group_size, 32);
  auto wanted = static_cast<int>(512 / std::min<uint64_t>(tiles, 512));
  int parts = std::clamp(p.K / group, 1, wanted);
  while (p.K % (parts * group) != 0 && parts > 1) {
    --parts;
  }
  return parts;
}

double mlx_cycles(const MatmulProblem& p, uint32_t cores) {
  uint64_t tiles = Tile{32, 32, 32}.grid({p.N, p.M, p.batch.size}).volume();
  int parts = p.batch.size == 1 ? mlx_parts(p, tiles) : 1;
  double one = launch_cycles(
      tiles * parts, cores, 32 * 32, p.K / parts, mlx_cost(p.format));
  return one + (parts > 1 ? sums_cycles(p, parts, cores) : 0);
}

// Returns the cycles of sorted experts in tiles that have rows of one each. The
// last tile of an expert is half empty on average.
double sorted_cycles(const GatherProblem& p,
                     const Tile& tile,
                     const TileCost& cost,
                     uint32_t cores) {
  double filled = static_cast<double>(p.B) / p.experts / tile.BM;
  double tiles = p.experts * std::max(1.0, filled + 0.5);
  auto across = static_cast<uint64_t>(std::ceil(tiles));
  return launch_cycles(
      across * ceil_div(p.N, tile.BN), cores, tile.BM * tile.BN, p.K, cost);
}

}  // namespace

bool mlx_tiles_are_faster(const MatmulProblem& p, const DeviceProfile& device) {
  int first = device.tier == 'd' ? kLastSkinnyRow + 1 : kFirstMlxTile;
  if (!p.transpose || p.batch_invariant || p.M < first || !is_known(device)) {
    return false;
  }
  return mlx_cycles(p, cores(device)) < kTolerance * least_cycles(p, device);
}

bool mlx_tiles_are_faster(const GatherProblem& p, const DeviceProfile& device) {
  if (!p.transpose || !takes_sorted_tiles(p) || !is_known(device)) {
    return false;
  }
  const Tile& tile = gather_tile(p.B / p.experts);
  TileCost cost = sorted_cost_of(tile, p.format);
  double ours = sorted_cycles(p, tile, cost, cores(device));
  // A launch before MLX's tiles finds where each expert begins.
  double mlx = kLaunchCycles +
               sorted_cycles(
                   p, kMlxSortedTile, mlx_sorted_cost(p.format), cores(device));
  return mlx < kTolerance * ours;
}

}  // namespace nibble

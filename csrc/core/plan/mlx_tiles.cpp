// MLX 0.32.4's tiles beside ours, by their predicted cost.
#include <algorithm>

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
  double one =
      launch_cycles(tiles * parts, cores, 32 * 32, p.K / parts, kMlxTileCost);
  return one + (parts > 1 ? sums_cycles(p, parts, cores) : 0);
}

}  // namespace

bool mlx_tiles_are_faster(const MatmulProblem& p, const DeviceProfile& device) {
  int first = device.tier == 'd' ? kLastSkinnyRow + 1 : kFirstMlxTile;
  if (!p.transpose || p.batch_invariant || p.M < first || !is_known(device)) {
    return false;
  }
  return mlx_cycles(p, cores(device)) < kTolerance * least_cycles(p, device);
}

}  // namespace nibble

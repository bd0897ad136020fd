// Products of x and one matrix, or a batch of matrices.
#include <algorithm>
#include <cassert>

#include "csrc/core/plan/cuda.h"
#include "csrc/core/plan/launch.h"
#include "csrc/core/plan/limits.h"
#include "csrc/core/planner.h"

namespace nibble {
namespace {

// From this number of rows on, 8x8 matrices are faster than qmv_multi.
// qmv_multi takes about 7 + M cycles of a lane for each code: mask, convert,
// scale, M products. qmm_skinny takes 6 + 8 for each started 8 rows. Also,
// qmv_multi reads x from the cache again for every 4 rows of w. Not measured;
// on an M3 Ultra the same crossover was reported at 4 to 6 rows (mlx #4265).
constexpr int kFirstSkinnyRow = 6;

// The largest number of rows for which qmv_multi reads w once.
constexpr int kLastMultiRow = 8;

// Up to this K, most lanes of whole simdgroups would be idle: these read 512
// codes at a time at 4 bits and 256 at 8. MLX's limit is the same K.
constexpr int kLastQuadK = 128;

// The bytes that a split of K must save must be at least this multiple of the
// bytes of its sums, for it to be the default: bytes do not show the cost of
// the second launch and of the wait before it. Not measured.
constexpr int kWorthASplit = 2;

// Binds `unread` in place of addends that the epilogue lacks.
void bind_addends(LaunchPlan& launch, const Epilogue& e, Operand unread) {
  bind(launch,
       {e.bias ? Operand::kBias : unread,
        e.residual ? Operand::kResidual : unread});
}

template <typename Shape>
LaunchPlan matmul_launch(const MatmulProblem& p,
                         Family family,
                         const Shape& shape) {
  LaunchPlan launch =
      launch_of(p, family, shape, {p.columns(), p.M, p.batch.size});
  bind_weights(launch, p.format);
  bind(launch, {Operand::kX});
  bind_addends(launch, p.epilogue, Operand::kScales);
  bind(launch, {Operand::kOut});
  launch.params = as_bytes(params_of(p));
  return launch;
}

LaunchPlan plan_qmv(const MatmulProblem& p) {
  return p.K <= kLastQuadK
             ? matmul_launch(
                   p, Family::kQmvQuad, QmvRows{.quads = NIBBLE_QMV_QUADS})
             : matmul_launch(p, Family::kQmv, QmvRows{});
}

// Uses the smallest form that takes all rows at once, or else the largest.
LaunchPlan plan_qmv_multi(const MatmulProblem& p) {
  auto form = std::ranges::lower_bound(kMultiRows, p.M);
  int rows = form == std::end(kMultiRows) ? *std::prev(form) : *form;
  return matmul_launch(p, Family::kQmvMulti, QmvRows{rows});
}

LaunchPlan plan_qmm_skinny(const MatmulProblem& p) {
  return matmul_launch(p, Family::kQmmSkinny, skinny_tile(p.M));
}

LaunchPlan plan_qmm(const MatmulProblem& p, const Tile& tile) {
  return matmul_launch(p, p.in_half() ? Family::kQmmHalf : Family::kQmm, tile);
}

LaunchPlan plan_qvm(const MatmulProblem& p) {
  return matmul_launch(p, Family::kQvm, QvmColumns{p.format});
}

LaunchPlan plan_qmm_n(const MatmulProblem& p) {
  return matmul_launch(p, Family::kQmmN, not_transposed_tile(p));
}

std::vector<Launches> candidates_not_transposed(const MatmulProblem& p) {
  if (p.batch_invariant) {
    return {{plan_qvm(p)}};
  }
  if (p.M < kFirstNotTransposedRow) {
    return {{plan_qvm(p)}, {plan_qmm_n(p)}};
  }
  return {{plan_qmm_n(p)}, {plan_qvm(p)}};
}

// Returns the number of threadgroups that keep every core busy.
constexpr uint32_t wanted_threadgroups(const DeviceProfile& device) {
  return kThreadgroupsPerCore * cores(device);
}

// True if more than half of the last row of tiles is used.
bool is_full(const Tile& tile, int M) {
  return ceil_div(M, tile.BM) * tile.BM - M <
         static_cast<uint32_t>(tile.BM) / 2;
}

// Returns the launches of tiles with K split into enough parts to keep all
// cores busy. Returns nullopt if K is too short to split, or if the tiles
// without a split are more than half of the wanted threadgroups: two parts
// would already be too many.
std::optional<Launches> plan_qmm_splitk(const MatmulProblem& p,
                                        const DeviceProfile& device) {
  const Tile& tile = split_tile(p.dtype);
  uint64_t tiles = tile.grid({p.N, p.M}).volume();
  uint64_t wanted = wanted_threadgroups(device);
  if (p.batch.size > 1 || p.half_tiles || !is_full(tile, p.M) ||
      !supports(tile, p, device) || 2 * tiles > wanted || p.K <= NIBBLE_SPLIT) {
    return std::nullopt;
  }
  int steps = static_cast<int>(ceil_div(p.K, NIBBLE_SPLIT));
  int most = static_cast<int>((wanted + tiles - 1) / tiles);
  int part = static_cast<int>(ceil_div(steps, std::min(steps, most)));
  SplitParams params{
      p.M, p.N, p.K, part * NIBBLE_SPLIT, 0, params_of(p).epilogue};
  params.parts = static_cast<int>(ceil_div(p.K, params.part));

  LaunchPlan parts =
      launch_of(p, Family::kQmmSplitk, tile, {p.N, p.M, params.parts});
  bind_weights(parts, p.format);
  bind(parts, {Operand::kX, Operand::kSums});
  parts.params = as_bytes(params);
  parts.sums_bytes = uint64_t{sizeof(float)} * params.parts * p.M * p.N;

  LaunchPlan sum = launch_of(p,
                             Family::kQmmSplitkSum,
                             Elementwise{NIBBLE_SPLIT_SUM_THREADS},
                             {p.N, p.M});
  bind(sum, {Operand::kSums});
  bind_addends(sum, p.epilogue, Operand::kSums);
  bind(sum, {Operand::kOut});
  sum.params = as_bytes(params);
  return {{std::move(parts), std::move(sum)}};
}

// True if the split saves enough bytes over a kernel that reads w once for
// every `rows` rows. Its sums are written once and read once.
bool saves_traffic(const Launches& split, const MatmulProblem& p, int rows) {
  uint64_t row = uint64_t(p.K) * p.format.bits / 8 +
                 uint64_t{1} * p.format.groups_per_row(p.K) *
                     p.format.group_arrays() * size_of(p.scale_dtype);
  uint64_t with = split.front().threadgroups.y;
  uint64_t without = ceil_div(p.M, rows);
  return without > with && (without - with) * row * p.N >=
                               kWorthASplit * 2 * split.front().sums_bytes;
}

// Returns the tile that plan() takes for many rows: the largest that gives
// every core enough to do and whose last row is more than half full. Returns
// nullopt if there is none.
std::optional<Tile> default_tile(const MatmulProblem& p,
                                 const DeviceProfile& device) {
  for (const Tile& tile : kTiles) {
    bool enough = tile.grid({p.N, p.M, p.batch.size}).volume() >=
                  wanted_threadgroups(device);
    if (is_full(tile, p.M) && enough && supports(tile, p, device)) {
      return tile;
    }
  }
  return std::nullopt;
}

std::vector<Launches> candidates_for_many_rows(const MatmulProblem& p,
                                               const DeviceProfile& device) {
  std::vector<Launches> all;
  std::optional<Tile> first = default_tile(p, device);
  auto split = plan_qmm_splitk(p, device);
  bool split_first =
      split && saves_traffic(*split, p, first ? first->BM : kLastSkinnyRow);
  if (split_first) {
    all.push_back(*split);
  }
  if (first) {
    all.push_back({plan_qmm(p, *first)});
  }
  all.push_back({plan_qmm_skinny(p)});
  for (const Tile& tile : kTiles) {
    if (tile != first && supports(tile, p, device)) {
      all.push_back({plan_qmm(p, tile)});
    }
  }
  if (split && !split_first) {
    all.push_back(std::move(*split));
  }
  return all;
}

}  // namespace

std::vector<Launches> candidates(const MatmulProblem& problem,
                                 const DeviceProfile& device) {
  MatmulProblem p = merge_rows(problem);
  assert(p.M >= 1 && p.N >= 1 && p.K >= 1 && p.batch.size >= 1);
  if (!supported(p.format, p.K)) {
    return {};
  }
  if (device.api == Api::kCuda) {
    return candidates_on_cuda(p);
  }
  if (!p.transpose) {
    assert(!p.epilogue.any());
    return candidates_not_transposed(p);
  }
  if (p.batch_invariant) {
    // All forms of qmm_skinny add up a row in the same order.
    return {{plan_qmm_skinny(p)}};
  }
  if (p.M == 1) {
    return {{plan_qmv(p)}};
  }
  if (p.M < kFirstSkinnyRow) {
    return {{plan_qmv_multi(p)}, {plan_qmm_skinny(p)}};
  }
  if (p.M <= kLastMultiRow) {
    return {{plan_qmm_skinny(p)}, {plan_qmv_multi(p)}};
  }
  if (p.M <= kLastSkinnyRow) {
    return {{plan_qmm_skinny(p)}};
  }
  return candidates_for_many_rows(p, device);
}

std::optional<Launches> plan(const MatmulProblem& p,
                             const DeviceProfile& device) {
  if (device.api == Api::kCuda && p.choice.empty() &&
      supported(p.format, p.K)) {
    return plan_on_cuda(merge_rows(p));
  }
  auto all = candidates(p, device);
  if (all.empty()) {
    return std::nullopt;
  }
  auto chosen = std::ranges::find_if(all, [&](const Launches& launches) {
    return launches.front().kernel == p.choice;
  });
  return std::move(chosen == all.end() ? all.front() : *chosen);
}

}  // namespace nibble

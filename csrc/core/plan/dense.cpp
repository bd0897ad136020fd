// Products of x and one matrix, or a batch of matrices.
#include <algorithm>
#include <cassert>

#include "csrc/core/plan/cost.h"
#include "csrc/core/plan/launch.h"
#include "csrc/core/plan/limits.h"
#include "csrc/core/planner.h"

namespace nibble {
namespace {

// From this number of rows on, 8x8 matrices are faster than qmv_multi.
// qmv_multi reads x from the cache again for every 4 rows of w. On M1 and M2 a
// core touches a line of 64 bytes in a cycle. For 6 rows and 32 columns,
// qmv_multi touches 3.4 lines, and qmm_skinny computes for 3.3 cycles. On M3
// and later a cycle has 1.4 lines, if there are threadgroups enough to use
// them. Predicted, not measured (docs/internals/simt.md); on an M3 Ultra the
// same crossover was reported at 4 to 6 rows (mlx #4265).
constexpr int first_skinny_row(const MatmulProblem& p,
                               const DeviceProfile& device) {
  bool enough = ceil_div(p.N, QmvRows{}.columns()) >=
                kThreadgroupsPerCore * cores(device);
  return device.generation >= 15 && enough ? 7 : 6;
}

// The largest number of rows for which qmv_multi reads w once.
constexpr int kLastMultiRow = 8;

// Up to this K, most lanes of whole simdgroups would be idle: these read 512
// codes at a time at 4 bits and 256 at 8. MLX's limit is the same K.
constexpr int kLastQuadK = 128;

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

// A plan for many rows and its predicted cycles.
struct Costed {
  double cycles;
  Launches launches;
};

// A split of K: the number of parts, and the columns of each but the last.
struct Split {
  int parts, columns;
  double cycles;
};

// Returns the split of K that costs least. Returns nullopt if K is too short to
// split, or if the tiles without a split already keep every core busy.
std::optional<Split> best_split(const MatmulProblem& p,
                                const DeviceProfile& device) {
  const Tile& tile = split_tile(p.dtype);
  uint64_t tiles = tile.grid({p.N, p.M}).volume();
  if (p.M <= kLastSkinnyRow || p.batch.size > 1 || p.half_tiles ||
      !supports(tile, p, device) || p.K <= NIBBLE_SPLIT ||
      tiles > uint64_t{kThreadgroupsPerCore} * cores(device)) {
    return std::nullopt;
  }
  int steps = static_cast<int>(ceil_div(p.K, NIBBLE_SPLIT));
  std::optional<Split> best;
  for (int wanted = 2; wanted <= steps; ++wanted) {
    int columns = static_cast<int>(ceil_div(steps, wanted)) * NIBBLE_SPLIT;
    int parts = static_cast<int>(ceil_div(p.K, columns));
    Split split{parts, columns, cycles(p, tile, parts, columns, cores(device))};
    if (!best || split.cycles < best->cycles) {
      best = split;
    }
  }
  return best;
}

Launches plan_qmm_splitk(const MatmulProblem& p, const Split& split) {
  const Tile& tile = split_tile(p.dtype);
  SplitParams params{
      p.M, p.N, p.K, split.columns, split.parts, params_of(p).epilogue};
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
  return {std::move(parts), std::move(sum)};
}

// Returns every plan for many rows, the one that costs least first.
std::vector<Launches> candidates_for_many_rows(const MatmulProblem& p,
                                               const DeviceProfile& device) {
  std::vector<Costed> costed;
  for (const Tile& tile : kTiles) {
    if (supports(tile, p, device)) {
      costed.push_back(
          {cycles(p, tile, 1, p.K, cores(device)), {plan_qmm(p, tile)}});
    }
  }
  costed.push_back(
      {cycles(p, skinny_tile(p.M), cores(device)), {plan_qmm_skinny(p)}});
  if (auto split = best_split(p, device)) {
    costed.push_back({split->cycles, plan_qmm_splitk(p, *split)});
  }
  std::ranges::stable_sort(costed, {}, &Costed::cycles);
  std::vector<Launches> all;
  for (Costed& one : costed) {
    all.push_back(std::move(one.launches));
  }
  return all;
}

}  // namespace

double least_cycles(const MatmulProblem& p, const DeviceProfile& device) {
  double least = cycles(p, skinny_tile(p.M), cores(device));
  if (p.M <= kLastSkinnyRow) {
    return least;
  }
  for (const Tile& tile : kTiles) {
    if (supports(tile, p, device)) {
      least = std::min(least, cycles(p, tile, 1, p.K, cores(device)));
    }
  }
  auto split = best_split(p, device);
  return split ? std::min(least, split->cycles) : least;
}

std::vector<Launches> candidates(const MatmulProblem& problem,
                                 const DeviceProfile& device) {
  MatmulProblem p = merge_rows(problem);
  assert(p.M >= 1 && p.N >= 1 && p.K >= 1 && p.batch.size >= 1);
  if (!supported(p.format, p.K)) {
    return {};
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
  if (p.M < first_skinny_row(p, device)) {
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

// Products of x and one matrix, or a batch of matrices.
#include <algorithm>
#include <cassert>
#include <utility>
#include <variant>

#include "csrc/core/plan/cost.h"
#include "csrc/core/plan/cuda.h"
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

// The tiles and the parts of K of qmm_splitk.
struct SplitTile : Tile {
  SplitParams params;

  uint64_t sums_bytes() const {
    return uint64_t{sizeof(float)} * params.parts * params.M * params.N;
  }
};

// A family in threadgroups of a shape. Only the chosen candidate's launches are
// made.
struct Candidate {
  Family family;
  std::variant<QmvRows,
               QvmColumns,
               SkinnyTile,
               Tile,
               NotTransposedTile,
               SplitTile>
      shape;
};

Candidate qmv(const MatmulProblem& p) {
  return p.K <= kLastQuadK
             ? Candidate{Family::kQmvQuad, QmvRows{.quads = NIBBLE_QMV_QUADS}}
             : Candidate{Family::kQmv, QmvRows{}};
}

// Uses the smallest form that takes all rows at once, or else the largest.
Candidate qmv_multi(const MatmulProblem& p) {
  auto form = std::ranges::lower_bound(kMultiRows, p.M);
  int rows = form == std::end(kMultiRows) ? *std::prev(form) : *form;
  return {Family::kQmvMulti, QmvRows{rows}};
}

Candidate qmm_skinny(const MatmulProblem& p) {
  return {Family::kQmmSkinny, skinny_tile(p.M)};
}

Candidate qmm(const MatmulProblem& p, const Tile& tile) {
  return {p.in_half() ? Family::kQmmHalf : Family::kQmm, tile};
}

std::vector<Candidate> candidates_not_transposed(const MatmulProblem& p) {
  Candidate qvm{Family::kQvm, QvmColumns{p.format}};
  Candidate qmm_n{Family::kQmmN, not_transposed_tile(p)};
  if (p.batch_invariant) {
    return {qvm};
  }
  if (p.M < kFirstNotTransposedRow) {
    return {qvm, qmm_n};
  }
  return {qmm_n, qvm};
}

// A split of K and its predicted cycles.
struct Split {
  SplitTile tile;
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
    double cost = cycles(p, tile, parts, columns, cores(device));
    if (!best || cost < best->cycles) {
      SplitParams params{p.M, p.N, p.K, columns, parts, params_of(p).epilogue};
      best = {{tile, params}, cost};
    }
  }
  return best;
}

// Returns every candidate for many rows, the one that costs least first.
std::vector<Candidate> candidates_for_many_rows(const MatmulProblem& p,
                                                const DeviceProfile& device) {
  std::vector<std::pair<double, Candidate>> costed;
  for (const Tile& tile : kTiles) {
    if (supports(tile, p, device)) {
      costed.emplace_back(cycles(p, tile, 1, p.K, cores(device)), qmm(p, tile));
    }
  }
  costed.emplace_back(cycles(p, skinny_tile(p.M), cores(device)),
                      qmm_skinny(p));
  if (auto split = best_split(p, device)) {
    costed.emplace_back(split->cycles,
                        Candidate{Family::kQmmSplitk, split->tile});
  }
  std::ranges::stable_sort(costed, {}, &std::pair<double, Candidate>::first);
  std::vector<Candidate> all;
  for (const auto& [cost, candidate] : costed) {
    all.push_back(candidate);
  }
  return all;
}

// `p` must come from merge_rows().
std::vector<Candidate> shapes_of(const MatmulProblem& p,
                                 const DeviceProfile& device) {
  assert(p.M >= 1 && p.N >= 1 && p.K >= 1 && p.batch.size >= 1);
  if (!supported_by_gpu(p.format, p.K)) {
    return {};
  }
  if (!p.transpose) {
    assert(!p.epilogue.any());
    return candidates_not_transposed(p);
  }
  if (p.batch_invariant) {
    // All forms of qmm_skinny add up a row in the same order.
    return {qmm_skinny(p)};
  }
  if (p.M == 1) {
    return {qmv(p)};
  }
  if (p.M < first_skinny_row(p, device)) {
    return {qmv_multi(p), qmm_skinny(p)};
  }
  if (p.M <= kLastMultiRow) {
    return {qmm_skinny(p), qmv_multi(p)};
  }
  if (p.M <= kLastSkinnyRow) {
    return {qmm_skinny(p)};
  }
  return candidates_for_many_rows(p, device);
}

std::string first_kernel(const MatmulProblem& p, const Candidate& candidate) {
  return std::visit(
      [&](const auto& shape) {
        return kernel_name({p, candidate.family, shape.shape()});
      },
      candidate.shape);
}

Launches launches_of(const MatmulProblem& p, const SplitTile& tile) {
  LaunchPlan parts =
      launch_of(p, Family::kQmmSplitk, tile, {p.N, p.M, tile.params.parts});
  bind_weights(parts, p.format);
  bind(parts, {Operand::kX, Operand::kSums});
  parts.params = as_bytes(tile.params);
  parts.sums_bytes = tile.sums_bytes();

  LaunchPlan sum = launch_of(p,
                             Family::kQmmSplitkSum,
                             Elementwise{NIBBLE_SPLIT_SUM_THREADS},
                             {p.N, p.M});
  bind(sum, {Operand::kSums});
  bind_addends(sum, p.epilogue, Operand::kSums);
  bind(sum, {Operand::kOut});
  sum.params = as_bytes(tile.params);
  return {std::move(parts), std::move(sum)};
}

Launches launches_of(const MatmulProblem& p, const Candidate& candidate) {
  if (const auto* split = std::get_if<SplitTile>(&candidate.shape)) {
    return launches_of(p, *split);
  }
  return {std::visit(
      [&](const auto& shape) {
        return matmul_launch(p, candidate.family, shape);
      },
      candidate.shape)};
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
  if (device.api == Api::kCuda) {
    return candidates_on_cuda(p, device);
  }
  std::vector<Launches> all;
  for (const Candidate& candidate : shapes_of(p, device)) {
    all.push_back(launches_of(p, candidate));
  }
  return all;
}

std::optional<Launches> plan(const MatmulProblem& problem,
                             const DeviceProfile& device) {
  MatmulProblem p = merge_rows(problem);
  if (device.api == Api::kCuda) {
    return plan_on_cuda(p, device);
  }
  std::vector<Candidate> all = shapes_of(p, device);
  if (all.empty()) {
    return std::nullopt;
  }
  auto chosen = all.begin();
  if (!p.choice.empty()) {
    auto found = std::ranges::find_if(all, [&](const Candidate& candidate) {
      return first_kernel(p, candidate) == p.choice;
    });
    chosen = found == all.end() ? chosen : found;
  }
  return launches_of(p, *chosen);
}

}  // namespace nibble

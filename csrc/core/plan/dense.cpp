// Products of x and one matrix, or a batch of matrices.
#include <algorithm>
#include <cassert>
#include <variant>

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

// Returns the number of threadgroups that keep every core busy.
constexpr uint32_t wanted_threadgroups(const DeviceProfile& device) {
  return kThreadgroupsPerCore * cores(device);
}

// True if more than half of the last row of tiles is used.
bool is_full(const Tile& tile, int M) {
  return ceil_div(M, tile.BM) * tile.BM - M <
         static_cast<uint32_t>(tile.BM) / 2;
}

// Returns tiles with K split into enough parts to keep all cores busy. Returns
// nullopt if K is too short to split, or if the tiles without a split are more
// than half of the wanted threadgroups: two parts would already be too many.
std::optional<SplitTile> split(const MatmulProblem& p,
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
  return SplitTile{tile, params};
}

// True if the split saves enough bytes over a kernel that reads w once for
// every `rows` rows. Its sums are written once and read once.
bool saves_traffic(const SplitTile& split, const MatmulProblem& p, int rows) {
  uint64_t row = uint64_t(p.K) * p.format.bits / 8 +
                 uint64_t{1} * p.format.groups_per_row(p.K) *
                     p.format.group_arrays() * size_of(p.scale_dtype);
  uint64_t with = ceil_div(p.M, split.BM);
  uint64_t without = ceil_div(p.M, rows);
  return without > with &&
         (without - with) * row * p.N >= kWorthASplit * 2 * split.sums_bytes();
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

std::vector<Candidate> candidates_for_many_rows(const MatmulProblem& p,
                                                const DeviceProfile& device) {
  std::vector<Candidate> all;
  std::optional<Tile> first = default_tile(p, device);
  auto parts = split(p, device);
  bool split_first =
      parts && saves_traffic(*parts, p, first ? first->BM : kLastSkinnyRow);
  if (split_first) {
    all.push_back({Family::kQmmSplitk, *parts});
  }
  if (first) {
    all.push_back(qmm(p, *first));
  }
  all.push_back(qmm_skinny(p));
  for (const Tile& tile : kTiles) {
    if (tile != first && supports(tile, p, device)) {
      all.push_back(qmm(p, tile));
    }
  }
  if (parts && !split_first) {
    all.push_back({Family::kQmmSplitk, *parts});
  }
  return all;
}

// `p` must come from merge_rows().
std::vector<Candidate> shapes_of(const MatmulProblem& p,
                                 const DeviceProfile& device) {
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
    return {qmm_skinny(p)};
  }
  if (p.M == 1) {
    return {qmv(p)};
  }
  if (p.M < kFirstSkinnyRow) {
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

std::vector<Launches> candidates(const MatmulProblem& problem,
                                 const DeviceProfile& device) {
  MatmulProblem p = merge_rows(problem);
  std::vector<Launches> all;
  for (const Candidate& candidate : shapes_of(p, device)) {
    all.push_back(launches_of(p, candidate));
  }
  return all;
}

std::optional<Launches> plan(const MatmulProblem& problem,
                             const DeviceProfile& device) {
  MatmulProblem p = merge_rows(problem);
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

#include "csrc/core/planner.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <initializer_list>

#include "csrc/core/kernel_name.h"
#include "csrc/core/kernel_source.h"
#include "csrc/core/tiles.h"
#include "kernels/shared.h"

namespace nibble {
namespace {

constexpr uint32_t ceil_div(int a, int b) {
  return static_cast<uint32_t>((a + b - 1) / b);
}

template <typename Params>
std::vector<std::byte> as_bytes(const Params& params) {
  std::vector<std::byte> bytes(sizeof(Params));
  std::memcpy(bytes.data(), &params, sizeof(Params));
  return bytes;
}

// From this number of rows on, 8x8 matrices beat qmv_multi: a code costs
// qmv_multi about 7 + M cycles of a lane (mask, convert, scale, M products) and
// qmm_skinny 6 + 8 for each started 8 rows, and the x of qmv_multi comes from
// the cache once more for every 4 rows of w. Not measured; on an M3 Ultra the
// same crossover was reported at 4 to 6 rows (mlx #4265).
constexpr int kFirstSkinnyRow = 6;

// Up to this number of rows qmv_multi reads w once.
constexpr int kLastMultiRow = 8;
// Up to this number of rows qmm_skinny does.
constexpr int kLastSkinnyRow = 32;

// From this number of rows on, tiles beat reading w once for each row where w
// is not transposed; MLX's limit on every GPU. Not measured by us.
constexpr int kFirstNotTransposedRow = 4;

// Sorted experts are multiplied by tiles from this number of rows on, in all
// and for each expert: MLX's thresholds for the same choice. Not measured.
constexpr int kFirstSortedTile = 16;
constexpr int kSortedRowsAnExpert = 4;

// Cores of the largest GPU of this tier, up to M5. Which of them it is the
// architecture string does not say, and too many threadgroups cost less than
// idle cores.
constexpr uint32_t most_cores(const DeviceProfile& device) {
  switch (device.tier) {
    case 'p':
      return 6;
    case 's':
      return 40;
    case 'd':
      return 80;
    default:
      return 20;
  }
}

// Of 128 threads each: 16 simdgroups, four for each of a core's four
// schedulers, to hide what the others wait for (metal-benchmarks: a core needs
// 8 to 24 for full use). Not measured.
constexpr uint32_t kThreadgroupsPerCore = 4;
constexpr uint32_t kSimdgroupsPerCore = 4 * kThreadgroupsPerCore;

// Up to this K, whole simdgroups, which read 512 codes at a time at 4 bits and
// 256 at 8, would be idle for the most part. MLX draws the line at the same K.
constexpr int kLastQuadK = 128;

// Of a problem that went through merge_rows().
MatmulParams params_of(const MatmulProblem& p) {
  assert(p.batch.repeat == 1);
  int epilogue = (p.epilogue.bias ? NIBBLE_BIAS : 0) |
                 (p.epilogue.residual ? NIBBLE_RESIDUAL : 0);
  return {p.M, p.N, p.K, p.batch.count, epilogue};
}

// The name of a kernel, and its weights and activations, which all bind first.
// A symmetric matrix has no biases; its kernels bind something unread.
template <typename Problem>
LaunchPlan launch_of(const Problem& p, Family family, std::vector<int> shape) {
  LaunchPlan launch;
  launch.kernel =
      kernel_name({family, p.dtype, p.scale_dtype, p.format, std::move(shape)});
  launch.buffers = {Operand::kWeight,
                    Operand::kScales,
                    p.format.has_biases() ? Operand::kBiases : Operand::kScales,
                    Operand::kX};
  return launch;
}

// The same for the entries that always take threadgroup memory; a family that
// needs more sets it.
template <typename Problem>
LaunchPlan product_launch(const Problem& p,
                          Family family,
                          std::vector<int> shape) {
  LaunchPlan launch = launch_of(p, family, std::move(shape));
  launch.threadgroup_bytes = NIBBLE_LEAST_THREADGROUP_BYTES;
  return launch;
}

void append(LaunchPlan& launch, std::initializer_list<Operand> operands) {
  launch.buffers.insert(launch.buffers.end(), operands);
}

// The launch of a kernel x @ w_hat^T or x @ w_hat, its grid still to be set. In
// the place of what there is none of in its epilogue it binds something unread.
LaunchPlan matmul_launch(const MatmulProblem& p,
                         Family family,
                         std::vector<int> shape) {
  LaunchPlan launch = product_launch(p, family, std::move(shape));
  append(launch,
         {p.epilogue.bias ? Operand::kBias : Operand::kScales,
          p.epilogue.residual ? Operand::kResidual : Operand::kScales,
          Operand::kOut});
  launch.params = as_bytes(params_of(p));
  return launch;
}

// Simdgroups that take NIBBLE_QMV_ROWS rows of w each, `quads` times as many if
// each of their quads does.
void spread_rows(LaunchPlan& launch, int N, int down, int deep, int quads = 1) {
  launch.threadgroups = {
      ceil_div(N, NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS * quads),
      static_cast<uint32_t>(down),
      static_cast<uint32_t>(deep)};
  launch.threads = {NIBBLE_SIMD_WIDTH, NIBBLE_QMV_SIMDGROUPS, 1};
}

// Threadgroups of `tile`, a Tile or a SkinnyTile, for y [deep, rows, columns].
template <typename AnyTile>
void spread_tiles(
    LaunchPlan& launch, const AnyTile& tile, int columns, int rows, int deep) {
  launch.threadgroups = {ceil_div(columns, tile.BN),
                         ceil_div(rows, tile.BM),
                         static_cast<uint32_t>(deep)};
  launch.threads = {tile.threads(), 1, 1};
}

LaunchPlan plan_qmv(const MatmulProblem& p) {
  bool quad = p.K <= kLastQuadK;
  LaunchPlan launch =
      matmul_launch(p, quad ? Family::kQmvQuad : Family::kQmv, {});
  spread_rows(launch, p.N, p.M, p.batch.size, quad ? NIBBLE_QMV_QUADS : 1);
  return launch;
}

LaunchPlan plan_qmv_multi(const MatmulProblem& p) {
  int rows = 0;
  for (int r : kMultiRows) {
    rows = r;
    if (r >= p.M) {
      break;
    }
  }
  LaunchPlan launch = matmul_launch(p, Family::kQmvMulti, {rows});
  spread_rows(launch, p.N, ceil_div(p.M, rows), p.batch.size);
  return launch;
}

// The least that takes all rows at once, or else the largest.
SkinnyTile skinny_tile(int M) {
  SkinnyTile tile;
  for (const SkinnyTile& t : kSkinnyTiles) {
    tile = t;
    if (t.BM >= M) {
      break;
    }
  }
  return tile;
}

LaunchPlan plan_qmm_skinny(const MatmulProblem& p) {
  SkinnyTile tile = skinny_tile(p.M);
  LaunchPlan launch = matmul_launch(p, Family::kQmmSkinny, tile.shape());
  spread_tiles(launch, tile, p.N, p.M, p.batch.size);
  launch.threadgroup_bytes = tile.threadgroup_bytes(p.format.bits, p.K);
  return launch;
}

// What tiles are made of.
Family tile_family(const MatmulProblem& p) {
  bool half = p.half_tiles && p.dtype == Dtype::kBFloat16;
  return half ? Family::kQmmHalf : Family::kQmm;
}

LaunchPlan plan_qmm(const MatmulProblem& p, const Tile& tile) {
  LaunchPlan launch = matmul_launch(p, tile_family(p), tile.shape());
  spread_tiles(launch, tile, p.N, p.M, p.batch.size);
  launch.threadgroup_bytes = tile.threadgroup_bytes(p.dtype);
  return launch;
}

// qvm's grid, for y [deep, rows, K].
void spread_columns(
    LaunchPlan& launch, const QuantFormat& format, int K, int rows, int deep) {
  int columns = NIBBLE_QVM_LANES * format.run_codes();
  launch.threadgroups = {ceil_div(K, columns),
                         static_cast<uint32_t>(rows),
                         static_cast<uint32_t>(deep)};
  launch.threads = {NIBBLE_SIMD_WIDTH, NIBBLE_QVM_SIMDGROUPS, 1};
  launch.threadgroup_bytes =
      static_cast<uint32_t>(columns) * NIBBLE_QVM_SIMDGROUPS * sizeof(float);
}

LaunchPlan plan_qvm(const MatmulProblem& p) {
  LaunchPlan launch = matmul_launch(p, Family::kQvm, {});
  spread_columns(launch, p.format, p.K, p.M, p.batch.size);
  return launch;
}

LaunchPlan plan_qmm_n(const MatmulProblem& p) {
  const Tile tile = not_transposed_tile(p.dtype, p.format);
  LaunchPlan launch = matmul_launch(p, Family::kQmmN, tile.shape());
  spread_tiles(launch, tile, p.K, p.M, p.batch.size);
  launch.threadgroup_bytes = not_transposed_threadgroup_bytes(tile, p.dtype);
  return launch;
}

std::vector<std::vector<LaunchPlan>> candidates_not_transposed(
    const MatmulProblem& p) {
  if (p.batch_invariant) {
    return {{plan_qvm(p)}};
  }
  if (p.M < kFirstNotTransposedRow) {
    return {{plan_qvm(p)}, {plan_qmm_n(p)}};
  }
  return {{plan_qmm_n(p)}, {plan_qvm(p)}};
}

// Threadgroups that keep every core busy.
constexpr uint32_t wanted_threadgroups(const DeviceProfile& device) {
  return kThreadgroupsPerCore * most_cores(device);
}

// Whether more than half of the last row of tiles is of use.
bool is_full(const Tile& tile, int M) {
  return ceil_div(M, tile.BM) * tile.BM - M <
         static_cast<uint32_t>(tile.BM) / 2;
}

// The launches of tiles with K split into so many parts that all cores have
// enough to do; none if more than half of the threadgroups that these want are
// there without (two parts would already be too many), or if there is nothing
// to split.
std::optional<std::vector<LaunchPlan>> plan_qmm_splitk(
    const MatmulProblem& p, const DeviceProfile& device) {
  const Tile& tile = split_tile(p.dtype);
  uint64_t tiles = uint64_t{ceil_div(p.M, tile.BM)} * ceil_div(p.N, tile.BN);
  uint64_t wanted = wanted_threadgroups(device);
  if (p.batch.size > 1 || p.half_tiles || !is_full(tile, p.M) ||
      !supports(tile, p.dtype, p.format, device) || 2 * tiles > wanted ||
      p.K <= NIBBLE_SPLIT) {
    return std::nullopt;
  }
  int steps = static_cast<int>(ceil_div(p.K, NIBBLE_SPLIT));
  int most = static_cast<int>((wanted + tiles - 1) / tiles);
  int part = static_cast<int>(ceil_div(steps, std::min(steps, most)));
  SplitParams params{
      p.M, p.N, p.K, part * NIBBLE_SPLIT, 0, params_of(p).epilogue};
  params.parts = static_cast<int>(ceil_div(p.K, params.part));

  LaunchPlan parts = launch_of(p, Family::kQmmSplitk, tile.shape());
  append(parts, {Operand::kSums});
  parts.params = as_bytes(params);
  spread_tiles(parts, tile, p.N, p.M, params.parts);
  parts.threadgroup_bytes = tile.threadgroup_bytes(p.dtype);
  parts.sums_bytes = uint64_t{sizeof(float)} * params.parts * p.M * p.N;

  LaunchPlan sum;
  sum.kernel = kernel_name(
      {Family::kQmmSplitkSum, p.dtype, p.scale_dtype, p.format, {}});
  sum.buffers = {Operand::kSums,
                 p.epilogue.bias ? Operand::kBias : Operand::kSums,
                 p.epilogue.residual ? Operand::kResidual : Operand::kSums,
                 Operand::kOut};
  sum.params = as_bytes(params);
  sum.threadgroups = {
      ceil_div(p.N, NIBBLE_SPLIT_SUM_THREADS), static_cast<uint32_t>(p.M), 1};
  sum.threads = {NIBBLE_SPLIT_SUM_THREADS, 1, 1};
  return {{std::move(parts), std::move(sum)}};
}

// What a split of K must save, over what its sums cost, to be the default:
// bytes do not show the second launch, and what stands still until it begins.
// Not measured.
constexpr int kWorthASplit = 2;

// Whether a kernel that reads w once for every `rows` rows would read so much
// more of it than these launches, whose sums are written and read once.
bool saves_traffic(const std::vector<LaunchPlan>& split,
                   const MatmulProblem& p,
                   int rows) {
  uint64_t groups = p.K / p.format.group_size;
  uint64_t row = uint64_t(p.K) * p.format.bits / 8 +
                 groups * p.format.group_arrays() * size_of(p.scale_dtype);
  uint64_t with = split.front().threadgroups.y;
  uint64_t without = ceil_div(p.M, rows);
  return without > with && (without - with) * row * p.N >=
                               kWorthASplit * 2 * split.front().sums_bytes;
}

// The launch of a product by index, its grid still to be set.
LaunchPlan gather_launch(const GatherProblem& p,
                         Family family,
                         std::vector<int> shape) {
  LaunchPlan launch = product_launch(p, family, std::move(shape));
  append(launch, {Operand::kLhsIndices, Operand::kRhsIndices, Operand::kOut});
  launch.params = as_bytes(GatherParams{p.M, p.N, p.K, p.B});
  return launch;
}

LaunchPlan plan_gather_qmv(const GatherProblem& p) {
  LaunchPlan launch = gather_launch(p, Family::kGatherQmv, {});
  spread_rows(launch, p.N, p.M, p.B);
  return launch;
}

LaunchPlan plan_gather_qmm_skinny(const GatherProblem& p) {
  SkinnyTile tile = skinny_tile(p.M);
  LaunchPlan launch = gather_launch(p, Family::kGatherQmmSkinny, tile.shape());
  spread_tiles(launch, tile, p.N, p.M, p.B);
  launch.threadgroup_bytes = tile.threadgroup_bytes(p.format.bits, p.K);
  return launch;
}

// Of sorted products of one row: a tile takes rows of several.
LaunchPlan plan_gather_qmm(const GatherProblem& p) {
  const Tile& tile = kGatherTile;
  LaunchPlan launch = gather_launch(p, Family::kGatherQmm, tile.shape());
  spread_tiles(launch, tile, p.N, p.B, 1);
  launch.threadgroup_bytes = tile.threadgroup_bytes(p.dtype);
  return launch;
}

LaunchPlan plan_gather_qvm(const GatherProblem& p) {
  LaunchPlan launch = gather_launch(p, Family::kGatherQvm, {});
  spread_columns(launch, p.format, p.K, p.M, p.B);
  return launch;
}

// Of many rows each; or, sorted, of one row: a tile takes rows of several.
LaunchPlan plan_gather_qmm_n(const GatherProblem& p, bool sorted) {
  const Tile tile = not_transposed_tile(p.dtype, p.format);
  Family family = sorted ? Family::kGatherSortedQmmN : Family::kGatherQmmN;
  LaunchPlan launch = gather_launch(p, family, tile.shape());
  spread_tiles(launch, tile, p.K, sorted ? p.B : p.M, sorted ? 1 : p.B);
  launch.threadgroup_bytes = not_transposed_threadgroup_bytes(tile, p.dtype);
  return launch;
}

LaunchPlan plan_gather_not_transposed(const GatherProblem& p, bool tiles) {
  if (tiles) {
    return plan_gather_qmm_n(p, true);
  }
  if (p.M >= kFirstNotTransposedRow && !p.batch_invariant) {
    return plan_gather_qmm_n(p, false);
  }
  return plan_gather_qvm(p);
}

// The names of these families for the types and the format of a problem.
template <typename Problem>
std::vector<std::string> names_of(std::initializer_list<Family> families,
                                  const Problem& p) {
  std::vector<std::string> names;
  for (Family family : families) {
    for (const KernelId& id :
         instances(family, p.dtype, p.scale_dtype, p.format)) {
      names.push_back(kernel_name(id));
    }
  }
  return names;
}

// Gate under the ordinary names, then up, then the activations.
template <typename Problem>
LaunchPlan swiglu_launch(const Problem& p, Family family) {
  LaunchPlan launch = launch_of(p, family, {});
  launch.buffers.insert(
      launch.buffers.end() - 1,
      {Operand::kUpWeight,
       Operand::kUpScales,
       p.format.has_biases() ? Operand::kUpBiases : Operand::kUpScales});
  return launch;
}

// The tile that plan() takes for many rows: the largest whose last row of
// tiles is more than half full, of those that still give every core enough to
// do; none if even the smallest is too large for that.
std::optional<Tile> default_tile(const MatmulProblem& p,
                                 const DeviceProfile& device) {
  for (const Tile& tile : kTiles) {
    uint32_t down = ceil_div(p.M, tile.BM);
    uint32_t across = ceil_div(p.N, tile.BN);
    bool enough =
        uint64_t{down} * across * p.batch.size >= wanted_threadgroups(device);
    if (is_full(tile, p.M) && enough &&
        supports(tile, p.dtype, p.format, device)) {
      return tile;
    }
  }
  return std::nullopt;
}

std::vector<std::vector<LaunchPlan>> candidates_for_many_rows(
    const MatmulProblem& p, const DeviceProfile& device) {
  std::vector<std::vector<LaunchPlan>> all;
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
    if (tile != first && supports(tile, p.dtype, p.format, device)) {
      all.push_back({plan_qmm(p, tile)});
    }
  }
  if (split && !split_first) {
    all.push_back(std::move(*split));
  }
  return all;
}

// The family that does for several products what this one does for one.
constexpr std::optional<Family> joint_family(Family family) {
  switch (family) {
    case Family::kQmv:
      return Family::kJointQmv;
    case Family::kQmvMulti:
      return Family::kJointQmvMulti;
    case Family::kQmmSkinny:
      return Family::kJointQmmSkinny;
    default:
      return std::nullopt;
  }
}

}  // namespace

std::vector<std::vector<LaunchPlan>> candidates(const MatmulProblem& problem,
                                                const DeviceProfile& device) {
  MatmulProblem p = merge_rows(problem);
  assert(p.M >= 1 && p.N >= 1 && p.K >= 1 && p.batch.size >= 1);
  if (!supported(p.format) || p.K % p.format.group_size != 0) {
    return {};
  }
  if (!p.transpose) {
    assert(!p.epilogue.any());
    return candidates_not_transposed(p);
  }
  if (p.batch_invariant) {
    // All of its forms add up a row in the same order.
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

std::optional<std::vector<LaunchPlan>> plan(const MatmulProblem& p,
                                            const DeviceProfile& device) {
  auto all = candidates(p, device);
  if (all.empty()) {
    return std::nullopt;
  }
  auto chosen = std::find_if(all.begin(), all.end(), [&](const auto& launches) {
    return launches.front().kernel == p.choice;
  });
  return std::move(chosen == all.end() ? all.front() : *chosen);
}

std::optional<std::vector<LaunchPlan>> plan(const GatherProblem& p,
                                            const DeviceProfile&) {
  assert(p.B >= 1 && p.M >= 1 && p.N >= 1 && p.K >= 1 && p.experts >= 1);
  if (!supported(p.format) || p.K % p.format.group_size != 0) {
    return std::nullopt;
  }
  // Whether a product of one row goes to a tile depends on the others.
  bool tiles = p.M == 1 && p.sorted && !p.batch_invariant &&
               p.B >= kFirstSortedTile &&
               p.B / p.experts >= kSortedRowsAnExpert;
  if (!p.transpose) {
    return {{plan_gather_not_transposed(p, tiles)}};
  }
  if (tiles) {
    return {{plan_gather_qmm(p)}};
  }
  // All forms of gather_qmm_skinny add up a row in the same order.
  if (p.M > 1 || p.batch_invariant) {
    return {{plan_gather_qmm_skinny(p)}};
  }
  return {{plan_gather_qmv(p)}};
}

std::vector<std::string> kernels_of_any_shape(const MatmulProblem& p) {
  if (!p.transpose) {
    return names_of({Family::kQvm, Family::kQmmN}, p);
  }
  if (p.batch_invariant) {
    return names_of({Family::kQmmSkinny}, p);
  }
  return names_of({Family::kQmv,
                   Family::kQmvQuad,
                   Family::kQmvMulti,
                   Family::kQmmSkinny,
                   Family::kQmmSplitk,
                   Family::kQmmSplitkSum,
                   tile_family(p)},
                  p);
}

std::vector<std::string> kernels_of_any_shape(const GatherProblem& p) {
  if (p.transpose && p.batch_invariant) {
    return names_of({Family::kGatherQmmSkinny}, p);
  }
  if (p.transpose) {
    return names_of(
        {Family::kGatherQmv, Family::kGatherQmmSkinny, Family::kGatherQmm}, p);
  }
  if (p.batch_invariant) {
    return names_of({Family::kGatherQvm}, p);
  }
  return names_of(
      {Family::kGatherQvm, Family::kGatherQmmN, Family::kGatherSortedQmmN}, p);
}

std::vector<std::string> kernels_of_any_shape(const DequantizeProblem& p) {
  return names_of({Family::kDequantize}, p);
}

std::optional<std::vector<LaunchPlan>> plan_swiglu(
    const MatmulProblem& problem) {
  MatmulProblem p = merge_rows(problem);
  assert(p.M >= 1 && p.N >= 1 && p.K >= 1 && p.batch.size >= 1);
  if (!supported(p.format) || p.K % p.format.group_size != 0 || !p.transpose ||
      p.batch_invariant || p.M > 1) {
    return std::nullopt;
  }
  LaunchPlan launch = swiglu_launch(p, Family::kSwiglu);
  append(launch, {Operand::kOut});
  launch.params = as_bytes(params_of(p));
  spread_rows(launch, p.N, p.M, p.batch.size);
  return {{launch}};
}

std::optional<std::vector<LaunchPlan>> plan_swiglu(const GatherProblem& p) {
  auto product = plan(p, DeviceProfile{});
  LaunchPlan vectors = plan_gather_qmv(p);
  if (!product || product->front() != vectors) {
    return std::nullopt;
  }
  LaunchPlan launch = swiglu_launch(p, Family::kGatherSwiglu);
  append(launch, {Operand::kLhsIndices, Operand::kRhsIndices, Operand::kOut});
  launch.params = vectors.params;
  spread_rows(launch, p.N, p.M, p.B);
  return {{launch}};
}

std::optional<std::vector<LaunchPlan>> plan_joint(
    const std::vector<MatmulProblem>& products, const DeviceProfile& device) {
  if (products.size() < 2 || products.size() > NIBBLE_JOINT) {
    return std::nullopt;
  }
  const MatmulProblem first = merge_rows(products[0]);
  const auto alone = plan(first, device);
  if (!alone) {
    return std::nullopt;
  }
  LaunchPlan launch = alone->front();
  KernelId id = *parse_kernel_name(launch.kernel);
  auto family = joint_family(id.family);
  // With more rows another product's kernel might be another by itself.
  if (!family || first.M > kLastSkinnyRow) {
    return std::nullopt;
  }
  uint32_t simdgroups = launch.threads.x * launch.threads.y *
                        launch.threadgroups.y / NIBBLE_SIMD_WIDTH;
  int columns = id.family == Family::kQmmSkinny
                    ? id.shape[1]
                    : NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS;
  JointParams params{first.M, first.K, 0, 0, 0, 0};
  int* N[] = {&params.N0, &params.N1, &params.N2};
  uint32_t across = 0;
  bool one_is_small = false;
  for (size_t i = 0; i < products.size(); ++i) {
    MatmulProblem p = merge_rows(products[i]);
    if (p.epilogue.residual || p.batch.size != 1 || !p.choice.empty()) {
      return std::nullopt;
    }
    *N[i] = p.N;
    params.biased |= (p.epilogue.bias ? 1 : 0) << i;
    uint32_t tiles = ceil_div(p.N, columns);
    one_is_small |=
        uint64_t{tiles} * simdgroups < kSimdgroupsPerCore * most_cores(device);
    across += tiles;
    p.N = first.N;
    p.epilogue = first.epilogue;
    if (p != first) {
      return std::nullopt;
    }
  }
  if (!one_is_small) {
    return std::nullopt;
  }
  id.family = *family;
  launch.kernel = kernel_name(id);
  launch.threadgroups.x = across;
  launch.params = as_bytes(params);
  launch.buffers.clear();
  // Of what is not there something else is bound, and never touched.
  auto bind = [&](std::initializer_list<Operand> operands, auto is_there) {
    size_t i = 0;
    for (Operand operand : operands) {
      launch.buffers.push_back(is_there(i++) ? operand : Operand::kScales);
    }
  };
  auto of_product = [&](Operand w, Operand scales, Operand biases, size_t i) {
    bind({w, scales, biases}, [&](size_t which) {
      return i < products.size() && (which < 2 || first.format.has_biases());
    });
  };
  of_product(Operand::kWeight, Operand::kScales, Operand::kBiases, 0);
  of_product(Operand::kWeight1, Operand::kScales1, Operand::kBiases1, 1);
  of_product(Operand::kWeight2, Operand::kScales2, Operand::kBiases2, 2);
  append(launch, {Operand::kX});
  bind({Operand::kBias, Operand::kBias1, Operand::kBias2},
       [&](size_t i) { return (params.biased >> i) & 1; });
  bind({Operand::kOut, Operand::kOut1, Operand::kOut2},
       [&](size_t i) { return i < products.size(); });
  return {{launch}};
}

std::optional<std::vector<LaunchPlan>> plan(const DequantizeProblem& p,
                                            const DeviceProfile&) {
  assert(p.rows >= 1 && p.K >= 1);
  if (!supported(p.format) || p.K % p.format.group_size != 0) {
    return std::nullopt;
  }
  // One thread for the codes of each run of whole words.
  constexpr uint32_t kThreads = NIBBLE_DEQUANTIZE_THREADS;
  LaunchPlan launch;
  launch.kernel =
      kernel_name({Family::kDequantize, p.dtype, p.scale_dtype, p.format, {}});
  launch.threadgroups = {ceil_div(p.K, p.format.run_codes() * kThreads),
                         static_cast<uint32_t>(p.rows),
                         1};
  launch.threads = {kThreads, 1, 1};
  launch.buffers = {Operand::kWeight,
                    Operand::kScales,
                    p.format.has_biases() ? Operand::kBiases : Operand::kScales,
                    Operand::kOut};
  launch.params = as_bytes(DequantizeParams{p.rows, p.K});
  return {{launch}};
}

std::optional<LaunchPlan> plan_align(int64_t offset, size_t bytes) {
  if (offset % NIBBLE_ALIGNMENT == 0) {
    return std::nullopt;
  }
  // Elements of every type are whole pairs of bytes.
  uint64_t pairs = bytes / 2;
  LaunchPlan launch;
  launch.kernel = kAlignKernel;
  launch.threads = {NIBBLE_ALIGN_THREADS, 1, 1};
  launch.threadgroups = {
      static_cast<uint32_t>((pairs + NIBBLE_ALIGN_THREADS - 1) /
                            NIBBLE_ALIGN_THREADS),
      1,
      1};
  launch.buffers = {Operand::kX, Operand::kOut};
  launch.params = as_bytes(AlignParams{pairs});
  return launch;
}

}  // namespace nibble

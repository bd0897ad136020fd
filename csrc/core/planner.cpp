#include "csrc/core/planner.h"

#include <algorithm>
#include <cassert>
#include <cstring>

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
constexpr int kFirstStraightRow = 4;

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

// Of a problem that went through merge_rows().
MatmulParams params_of(const MatmulProblem& p) {
  assert(p.batch.repeat == 1);
  int epilogue = (p.epilogue.bias ? NIBBLE_BIAS : 0) |
                 (p.epilogue.residual ? NIBBLE_RESIDUAL : 0);
  return {p.M, p.N, p.K, p.batch.count, epilogue};
}

// The launch of a kernel x @ w_hat^T or x @ w_hat, its grid still to be set.
LaunchPlan matmul_launch(const MatmulProblem& p,
                         Family family,
                         std::vector<int> shape) {
  LaunchPlan launch;
  launch.kernel =
      kernel_name({family, p.dtype, p.scale_dtype, p.format, std::move(shape)});
  // A symmetric matrix has no biases; its kernels bind something unread.
  launch.buffers = {Operand::kWeight,
                    Operand::kScales,
                    p.format.symmetric ? Operand::kScales : Operand::kBiases,
                    Operand::kX,
                    Operand::kOut};
  launch.params = as_bytes(params_of(p));
  return launch;
}

// The same of a kernel y = x @ w_hat^T that takes an epilogue. In the place of
// what there is none of it binds something unread.
LaunchPlan transposed_launch(const MatmulProblem& p,
                             Family family,
                             std::vector<int> shape) {
  LaunchPlan launch = matmul_launch(p, family, std::move(shape));
  launch.buffers.insert(
      launch.buffers.end() - 1,
      {p.epilogue.bias ? Operand::kBias : Operand::kScales,
       p.epilogue.residual ? Operand::kResidual : Operand::kScales});
  return launch;
}

LaunchPlan plan_qmv(const MatmulProblem& p) {
  // Whole simdgroups read 512 codes at a time at 4 bits, 256 at 8: most of
  // their lanes would be idle. MLX draws the line at the same K.
  bool quad = p.K <= 128;
  int rows =
      NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS * (quad ? NIBBLE_QMV_QUADS : 1);
  LaunchPlan launch =
      transposed_launch(p, quad ? Family::kQmvQuad : Family::kQmv, {});
  launch.threadgroups = {ceil_div(p.N, rows),
                         static_cast<uint32_t>(p.M),
                         static_cast<uint32_t>(p.batch.size)};
  launch.threads = {NIBBLE_SIMD_WIDTH, NIBBLE_QMV_SIMDGROUPS, 1};
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
  LaunchPlan launch = transposed_launch(p, Family::kQmvMulti, {rows});
  launch.threadgroups = {ceil_div(p.N, NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS),
                         ceil_div(p.M, rows),
                         static_cast<uint32_t>(p.batch.size)};
  launch.threads = {NIBBLE_SIMD_WIDTH, NIBBLE_QMV_SIMDGROUPS, 1};
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
  LaunchPlan launch = transposed_launch(p, Family::kQmmSkinny, tile.shape());
  launch.threadgroups = {ceil_div(p.N, tile.BN),
                         ceil_div(p.M, tile.BM),
                         static_cast<uint32_t>(p.batch.size)};
  launch.threads = {tile.threads(), 1, 1};
  launch.threadgroup_bytes = tile.threadgroup_bytes();
  return launch;
}

// What tiles are made of.
Family tile_family(const MatmulProblem& p) {
  bool half = p.half_tiles && p.dtype == Dtype::kBFloat16;
  return half ? Family::kQmmHalf : Family::kQmm;
}

LaunchPlan plan_qmm(const MatmulProblem& p, const Tile& tile) {
  LaunchPlan launch = transposed_launch(p, tile_family(p), tile.shape());
  launch.threadgroups = {ceil_div(p.N, tile.BN),
                         ceil_div(p.M, tile.BM),
                         static_cast<uint32_t>(p.batch.size)};
  launch.threads = {NIBBLE_SIMD_WIDTH,
                    static_cast<uint32_t>(tile.WN),
                    static_cast<uint32_t>(tile.WM)};
  launch.threadgroup_bytes = tile.threadgroup_bytes(p.dtype);
  return launch;
}

LaunchPlan plan_qvm(const MatmulProblem& p) {
  LaunchPlan launch = matmul_launch(p, Family::kQvm, {});
  int columns = NIBBLE_QVM_LANES * p.format.run_codes();
  launch.threadgroups = {ceil_div(p.K, columns),
                         static_cast<uint32_t>(p.M),
                         static_cast<uint32_t>(p.batch.size)};
  launch.threads = {NIBBLE_SIMD_WIDTH, NIBBLE_QVM_SIMDGROUPS, 1};
  launch.threadgroup_bytes =
      static_cast<uint32_t>(columns) * NIBBLE_QVM_SIMDGROUPS * sizeof(float);
  return launch;
}

LaunchPlan plan_qmm_n(const MatmulProblem& p) {
  const Tile& tile = kStraightTile;
  LaunchPlan launch = matmul_launch(p, Family::kQmmN, tile.shape());
  launch.threadgroups = {ceil_div(p.K, tile.BN),
                         ceil_div(p.M, tile.BM),
                         static_cast<uint32_t>(p.batch.size)};
  launch.threads = {NIBBLE_SIMD_WIDTH,
                    static_cast<uint32_t>(tile.WN),
                    static_cast<uint32_t>(tile.WM)};
  launch.threadgroup_bytes = straight_threadgroup_bytes(tile, p.dtype);
  return launch;
}

std::vector<std::vector<LaunchPlan>> candidates_not_transposed(
    const MatmulProblem& p) {
  if (p.batch_invariant) {
    return {{plan_qvm(p)}};
  }
  if (p.M < kFirstStraightRow) {
    return {{plan_qvm(p)}, {plan_qmm_n(p)}};
  }
  return {{plan_qmm_n(p)}, {plan_qvm(p)}};
}

// The launch of a kernel of gather.h, its grid still to be set.
LaunchPlan gather_launch(const GatherProblem& p,
                         Family family,
                         std::vector<int> shape) {
  LaunchPlan launch;
  launch.kernel =
      kernel_name({family, p.dtype, p.scale_dtype, p.format, std::move(shape)});
  launch.buffers = {Operand::kWeight,
                    Operand::kScales,
                    p.format.symmetric ? Operand::kScales : Operand::kBiases,
                    Operand::kX,
                    Operand::kLhsIndices,
                    Operand::kRhsIndices,
                    Operand::kOut};
  launch.params = as_bytes(GatherParams{p.M, p.N, p.K, p.B});
  return launch;
}

LaunchPlan plan_gather_qmv(const GatherProblem& p) {
  LaunchPlan launch = gather_launch(p, Family::kGatherQmv, {});
  launch.threadgroups = {ceil_div(p.N, NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS),
                         static_cast<uint32_t>(p.M),
                         static_cast<uint32_t>(p.B)};
  launch.threads = {NIBBLE_SIMD_WIDTH, NIBBLE_QMV_SIMDGROUPS, 1};
  return launch;
}

LaunchPlan plan_gather_qmm_skinny(const GatherProblem& p) {
  SkinnyTile tile = skinny_tile(p.M);
  LaunchPlan launch = gather_launch(p, Family::kGatherQmmSkinny, tile.shape());
  launch.threadgroups = {ceil_div(p.N, tile.BN),
                         ceil_div(p.M, tile.BM),
                         static_cast<uint32_t>(p.B)};
  launch.threads = {tile.threads(), 1, 1};
  launch.threadgroup_bytes = tile.threadgroup_bytes();
  return launch;
}

LaunchPlan plan_gather_qmm(const GatherProblem& p) {
  const Tile& tile = kGatherTile;
  LaunchPlan launch = gather_launch(p, Family::kGatherQmm, tile.shape());
  launch.threadgroups = {ceil_div(p.N, tile.BN), ceil_div(p.B, tile.BM), 1};
  launch.threads = {NIBBLE_SIMD_WIDTH,
                    static_cast<uint32_t>(tile.WN),
                    static_cast<uint32_t>(tile.WM)};
  launch.threadgroup_bytes = tile.threadgroup_bytes(p.dtype);
  return launch;
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

// Gate under the ordinary names, then up, then the rest of `launch`.
LaunchPlan with_up(LaunchPlan launch) {
  bool symmetric = launch.buffers[2] == Operand::kScales;
  launch.buffers.insert(launch.buffers.begin() + 3,
                        {Operand::kUpWeight,
                         Operand::kUpScales,
                         symmetric ? Operand::kUpScales : Operand::kUpBiases});
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
    bool full = down * tile.BM - p.M < static_cast<uint32_t>(tile.BM) / 2;
    bool enough = uint64_t{down} * across * p.batch.size >=
                  kThreadgroupsPerCore * most_cores(device);
    if (full && enough && supports(tile, p.dtype, p.format, device)) {
      return tile;
    }
  }
  return std::nullopt;
}

std::vector<std::vector<LaunchPlan>> candidates_for_many_rows(
    const MatmulProblem& p, const DeviceProfile& device) {
  std::vector<std::vector<LaunchPlan>> all;
  std::optional<Tile> first = default_tile(p, device);
  if (first) {
    all.push_back({plan_qmm(p, *first)});
  }
  all.push_back({plan_qmm_skinny(p)});
  for (const Tile& tile : kTiles) {
    if (tile != first && supports(tile, p.dtype, p.format, device)) {
      all.push_back({plan_qmm(p, tile)});
    }
  }
  return all;
}

}  // namespace

std::vector<std::vector<LaunchPlan>> candidates(const MatmulProblem& problem,
                                                const DeviceProfile& device) {
  MatmulProblem p = merge_rows(problem);
  assert(p.M >= 1 && p.N >= 1 && p.K >= 1 && p.batch.size >= 1);
  if (!held(p.format) || p.K % p.format.group_size != 0) {
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
  if (!held(p.format) || p.K % p.format.group_size != 0 || !p.transpose) {
    return std::nullopt;
  }
  if (p.M > 1) {
    return {{plan_gather_qmm_skinny(p)}};
  }
  if (p.sorted && p.B >= kFirstSortedTile &&
      p.B / p.experts >= kSortedRowsAnExpert) {
    return {{plan_gather_qmm(p)}};
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
                   tile_family(p)},
                  p);
}

std::vector<std::string> kernels_of_any_shape(const GatherProblem& p) {
  return names_of(
      {Family::kGatherQmv, Family::kGatherQmmSkinny, Family::kGatherQmm}, p);
}

std::vector<std::string> kernels_of_any_shape(const DequantizeProblem& p) {
  return names_of({Family::kDequantize}, p);
}

std::optional<std::vector<LaunchPlan>> plan_swiglu(
    const MatmulProblem& problem) {
  MatmulProblem p = merge_rows(problem);
  assert(p.M >= 1 && p.N >= 1 && p.K >= 1 && p.batch.size >= 1);
  if (!held(p.format) || p.K % p.format.group_size != 0 || !p.transpose ||
      p.batch_invariant || p.M > 1) {
    return std::nullopt;
  }
  LaunchPlan launch = with_up(matmul_launch(p, Family::kSwiglu, {}));
  launch.threadgroups = {ceil_div(p.N, NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS),
                         static_cast<uint32_t>(p.M),
                         static_cast<uint32_t>(p.batch.size)};
  launch.threads = {NIBBLE_SIMD_WIDTH, NIBBLE_QMV_SIMDGROUPS, 1};
  return {{launch}};
}

std::optional<std::vector<LaunchPlan>> plan_swiglu(const GatherProblem& p) {
  auto product = plan(p, DeviceProfile{});
  LaunchPlan vectors = plan_gather_qmv(p);
  if (!product || product->front() != vectors) {
    return std::nullopt;
  }
  LaunchPlan launch = with_up(gather_launch(p, Family::kGatherSwiglu, {}));
  launch.threadgroups = vectors.threadgroups;
  launch.threads = vectors.threads;
  return {{launch}};
}

std::optional<std::vector<LaunchPlan>> plan(const DequantizeProblem& p,
                                            const DeviceProfile&) {
  assert(p.rows >= 1 && p.K >= 1);
  if (!held(p.format) || p.K % p.format.group_size != 0) {
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
                    p.format.symmetric ? Operand::kScales : Operand::kBiases,
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

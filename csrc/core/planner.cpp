#include "csrc/core/planner.h"

#include <cassert>
#include <cstring>

#include "csrc/core/kernel_name.h"
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

// Number of rows from which tiles beat one pass over the weights a row: where
// MLX 0.32.4 turns from qmv to qmm on the same GPU. Not measured by us.
int first_tiled_row(const MatmulProblem& p, const DeviceProfile& device) {
  int widest = p.K > p.N ? p.K : p.N;
  auto by_size = [&](int small, int medium, int large) {
    return widest <= 2048 ? small : widest <= 4096 ? medium : large;
  };
  if (device.tier == 'd' && device.generation < 17) {
    return by_size(32, 18, 12);
  }
  if (device.generation >= 17) {
    return by_size(33, 25, 13);
  }
  if (device.generation >= 15) {
    return by_size(13, 15, 13);
  }
  return by_size(14, 10, 6);
}

MatmulParams params_of(const MatmulProblem& p) {
  return {p.M, p.N, p.K, p.batch.repeat, p.batch.count};
}

LaunchPlan plan_qmv(const MatmulProblem& p) {
  LaunchPlan launch;
  launch.kernel = kernel_name(
      {Family::kQmv, p.dtype, p.scale_dtype, p.format, std::nullopt});
  launch.threadgroups = {ceil_div(p.N, NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS),
                         static_cast<uint32_t>(p.M),
                         static_cast<uint32_t>(p.batch.size)};
  launch.threads = {NIBBLE_SIMD_WIDTH, NIBBLE_QMV_SIMDGROUPS, 1};
  launch.buffers = {Operand::kWeight,
                    Operand::kScales,
                    Operand::kBiases,
                    Operand::kX,
                    Operand::kOut};
  launch.params = as_bytes(params_of(p));
  return launch;
}

LaunchPlan plan_qmm(const MatmulProblem& p, const Tile& tile) {
  LaunchPlan launch;
  launch.kernel =
      kernel_name({Family::kQmm, p.dtype, p.scale_dtype, p.format, tile});
  launch.threadgroups = {ceil_div(p.N, tile.BN),
                         ceil_div(p.M, tile.BM),
                         static_cast<uint32_t>(p.batch.size)};
  launch.threads = {NIBBLE_SIMD_WIDTH,
                    static_cast<uint32_t>(tile.WN),
                    static_cast<uint32_t>(tile.WM)};
  launch.buffers = {Operand::kWeight,
                    Operand::kScales,
                    Operand::kBiases,
                    Operand::kX,
                    Operand::kOut};
  launch.params = as_bytes(params_of(p));
  launch.threadgroup_bytes = tile.threadgroup_bytes(p.dtype);
  return launch;
}

}  // namespace

std::optional<std::vector<LaunchPlan>> plan(const MatmulProblem& p,
                                            const DeviceProfile& device) {
  assert(p.M >= 1 && p.N >= 1 && p.K >= 1 && p.batch.size >= 1);
  if (!held(p.format) || p.K % p.format.group_size != 0 || !p.transpose) {
    return std::nullopt;
  }
  if (p.M < first_tiled_row(p, device)) {
    return {{plan_qmv(p)}};
  }
  for (const Tile& tile : kTiles) {
    if (supports(tile, p.dtype, p.format, device)) {
      return {{plan_qmm(p, tile)}};
    }
  }
  return {{plan_qmv(p)}};
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
  launch.kernel = kernel_name(
      {Family::kDequantize, p.dtype, p.scale_dtype, p.format, std::nullopt});
  launch.threadgroups = {ceil_div(p.K, p.format.run_codes() * kThreads),
                         static_cast<uint32_t>(p.rows),
                         1};
  launch.threads = {kThreads, 1, 1};
  launch.buffers = {
      Operand::kWeight, Operand::kScales, Operand::kBiases, Operand::kOut};
  launch.params = as_bytes(DequantizeParams{p.rows, p.K});
  return {{launch}};
}

}  // namespace nibble

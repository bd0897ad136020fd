#include "csrc/core/plan/cuda_wgmma.h"

#include <algorithm>
#include <iterator>

#include "csrc/core/plan/cuda_launch.h"
#include "csrc/core/tiles.h"

namespace nibble {

namespace {

// Up to this number of rows, and from this number of columns on, cuda_qmm_wgmma
// was faster. It rounds weights, too.
constexpr int kLastWgmmaRow = 512;
constexpr int kWgmmaColumns = 4096;

// Its time is that of its steps, for each flight of blocks. The time of
// `dequantize` with a dense product is that of its weights, some for each row.
// Microseconds for a million of weights, on an H200 (docs/results/cuda.md).
constexpr int kMultiprocessors = 132;
constexpr double kDequantizeTime = 0.75;
constexpr double kDenseRowTime = 0.0028;
// Inside MLX, another node and the memory of rounded weights take as long, at
// least.
constexpr double kNodeTime = 8;

LaunchPlan wgmma_launch(const MatmulProblem& p, const CudaWgmmaTile& tile) {
  LaunchPlan plan = cuda_launch(p, tile, Family::kCudaQmmWgmma);
  constexpr int kWordCodes = 8;
  plan.boxes = {{Operand::kX,
                 p.M,
                 p.K,
                 NIBBLE_WGMMA_BOX_ROWS,
                 NIBBLE_WGMMA_STEP,
                 2,
                 true},
                {Operand::kWeight,
                 p.N,
                 p.K / kWordCodes,
                 NIBBLE_WGMMA_COLUMNS,
                 NIBBLE_WGMMA_STEP / kWordCodes,
                 4,
                 false}};
  return plan;
}

double wgmma_time(const MatmulProblem& p, const CudaWgmmaTile& tile) {
  int64_t blocks = tile.grid({p.columns(), p.M}).x;
  int64_t flights = ceil_div(blocks, kMultiprocessors);
  return double(flights * (p.K / NIBBLE_WGMMA_STEP)) * tile.step;
}

// The tiles of cuda_qmm_wgmma for `p`, the fastest first; none if it does not
// compute this.
std::vector<CudaWgmmaTile> wgmma_tiles(const MatmulProblem& p,
                                       const DeviceProfile& device) {
  if (!device.wgmma || !p.transpose || p.batch_invariant || !is_read(p) ||
      !supported_by_wgmma(without_symmetry(p)) || p.batch.size > 1 ||
      p.K % NIBBLE_WGMMA_STEP != 0 || p.M <= kLastSkinnyRow) {
    return {};
  }
  std::vector<CudaWgmmaTile> all(std::begin(kWgmmaTiles),
                                 std::end(kWgmmaTiles));
  std::ranges::stable_sort(
      all, {}, [&](const CudaWgmmaTile& tile) { return wgmma_time(p, tile); });
  return all;
}

}  // namespace

std::vector<LaunchPlan> wgmma_launches(const MatmulProblem& p,
                                       const DeviceProfile& device) {
  std::vector<LaunchPlan> all;
  for (const CudaWgmmaTile& tile : wgmma_tiles(p, device)) {
    all.push_back(wgmma_launch(p, tile));
  }
  return all;
}

bool wgmma_is_fastest(const MatmulProblem& p, const DeviceProfile& device) {
  std::vector<CudaWgmmaTile> tiles = wgmma_tiles(p, device);
  double weights = double(p.N) * p.K / 1e6;
  return !tiles.empty() && p.M <= kLastWgmmaRow && p.N >= kWgmmaColumns &&
         wgmma_time(p, tiles.front()) <
             weights * (kDequantizeTime + kDenseRowTime * p.M) + kNodeTime;
}

}  // namespace nibble

// The shapes of threadgroups. Each shape knows the numbers in its kernel's name
// and its grid, threads and threadgroup memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/problem.h"
#include "kernels/cuda/wgmma_tile.h"
#include "kernels/shared.h"

namespace nibble {

// Kernels need operands that begin at a multiple of this number of bytes. Other
// operands are copied.
inline constexpr size_t kOperandAlignment = NIBBLE_ALIGNMENT;

constexpr uint32_t ceil_div(int64_t a, int64_t b) {
  return static_cast<uint32_t>((a + b - 1) / b);
}

// The size of a result [deep, rows, columns].
struct Extent {
  int64_t columns;
  int rows = 1;
  int deep = 1;

  // Returns the grid of threadgroups that compute `high` x `wide` elements.
  constexpr Dim3 blocks(int high, int wide) const {
    return {ceil_div(columns, wide),
            ceil_div(rows, high),
            static_cast<uint32_t>(deep)};
  }
};

// qmv, qmv_multi: a threadgroup multiplies `rows` rows of x by NIBBLE_QMV_ROWS
// rows of w for each simdgroup or, in qmv_quad, for each of its `quads`.
struct QmvRows {
  int rows = 1;
  int quads = 1;

  std::vector<int> shape() const {
    return rows > 1 ? std::vector{rows} : std::vector<int>{};
  }
  constexpr int columns() const {
    return NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS * quads;
  }
  constexpr Dim3 grid(const Extent& y) const {
    return y.blocks(rows, columns());
  }
  constexpr Dim3 threads() const {
    return {NIBBLE_SIMD_WIDTH, NIBBLE_QMV_SIMDGROUPS, 1};
  }
  constexpr uint32_t threadgroup_bytes(const Types&) const { return 0; }
};

// qmv_multi: rows of x from one pass over w. Numbers in between use the next
// larger form: an unused row costs one multiplication for each code, another
// form a compilation.
inline constexpr int kMultiRows[] = {2, 3, 4, 5, 6, 8};
// The largest form of joint products. From 6 rows on, the kernel of a product
// depends on N too (first_skinny_row() in plan/dense.cpp).
inline constexpr int kLastJointForm = 5;

// qvm: NIBBLE_QVM_LANES lanes take a run of codes each from every row of w.
struct QvmColumns {
  QuantFormat format;

  std::vector<int> shape() const { return {}; }
  constexpr int columns() const {
    return NIBBLE_QVM_LANES * format.run_codes();
  }
  constexpr Dim3 grid(const Extent& y) const { return y.blocks(1, columns()); }
  constexpr Dim3 threads() const {
    return {NIBBLE_SIMD_WIDTH, NIBBLE_QVM_SIMDGROUPS, 1};
  }
  // Each simdgroup's sums, in float.
  constexpr uint32_t threadgroup_bytes(const Types&) const {
    return static_cast<uint32_t>(columns()) * NIBBLE_QVM_SIMDGROUPS *
           sizeof(float);
  }
};

// Kernels that stream an array: each thread computes `elements` neighbours of a
// row.
struct Elementwise {
  int width;  // threads of a threadgroup
  int elements = 1;

  std::vector<int> shape() const { return {}; }
  constexpr Dim3 grid(const Extent& y) const {
    return y.blocks(1, width * elements);
  }
  constexpr Dim3 threads() const { return {static_cast<uint32_t>(width)}; }
  constexpr uint32_t threadgroup_bytes(const Types&) const { return 0; }
};

// group_gradient: squares of d/d w_hat [N, K].
struct GradientSquares {
  int group_size;

  std::vector<int> shape() const { return {}; }
  constexpr Dim3 grid(const Extent& d) const {
    int across = nibble_gradient_across(group_size);
    int down = NIBBLE_GRADIENT_SIMDGROUPS / across;
    return d.blocks(down * NIBBLE_GRADIENT_SIDE, across * NIBBLE_GRADIENT_SIDE);
  }
  constexpr Dim3 threads() const {
    return {NIBBLE_GRADIENT_SIMDGROUPS * NIBBLE_SIMD_WIDTH};
  }
  constexpr uint32_t threadgroup_bytes(const Types&) const {
    return static_cast<uint32_t>(nibble_gradient_memory(group_size));
  }
};

inline constexpr int kFragment = 8;

// qmm_skinny: a threadgroup of WK simdgroups, which share out K, computes
// BM x BN of y.
struct SkinnyTile {
  int BM = 8, BN = 32, WK = 8;

  bool operator==(const SkinnyTile&) const = default;

  std::vector<int> shape() const { return {BM, BN, WK}; }
  constexpr Dim3 grid(const Extent& y) const { return y.blocks(BM, BN); }
  constexpr Dim3 threads() const {
    return {static_cast<uint32_t>(WK * NIBBLE_SIMD_WIDTH)};
  }
  constexpr uint32_t threadgroup_bytes(const Types& types) const {
    return static_cast<uint32_t>(
        nibble_skinny_memory(types.format.bits, BM, BN, WK));
  }
};

// BN of 32: four fragments of w for each one of x. WK of 8: the choice of
// llama.cpp and avlp12 for the same split on M3; small N still fills the cores.
// WK is the same for every BM, so that a row's sum does not depend on the
// number of rows.
inline constexpr SkinnyTile kSkinnyTiles[] = {
    {8, 32, 8}, {16, 32, 8}, {32, 32, 8}};

// Returns the smallest tile that takes all rows at once, or else the largest.
constexpr SkinnyTile skinny_tile(int M) {
  auto fits = [&](const SkinnyTile& tile) { return tile.BM >= M; };
  auto found = std::ranges::find_if(kSkinnyTiles, fits);
  return found == std::end(kSkinnyTiles) ? *std::prev(found) : *found;
}

// qmm: a threadgroup of WM x WN simdgroups computes BM x BN of y, BK of K at a
// time, in 8x8 fragments.
struct Tile {
  int BM = 32, BN = 32, BK = 32;
  int WM = 2, WN = 2;

  bool operator==(const Tile&) const = default;

  std::vector<int> shape() const { return {BM, BN, BK, WM, WN}; }
  constexpr Dim3 grid(const Extent& y) const { return y.blocks(BM, BN); }
  constexpr Dim3 threads() const {
    return {static_cast<uint32_t>(WM * WN * NIBBLE_SIMD_WIDTH)};
  }
  // Bytes of a block whose rows are padded by 16 bytes, so that the eight rows
  // of a fragment start in different banks.
  static constexpr uint32_t padded(int rows, int columns, Dtype dtype) {
    return static_cast<uint32_t>(rows) *
           (columns * static_cast<uint32_t>(size_of(dtype)) + 16);
  }
  // Two blocks each of x and w: one is multiplied while the next arrives.
  constexpr uint32_t threadgroup_bytes(const Types& types) const {
    return 2 * padded(BM + BN, BK, types.dtype);
  }
};

// The tiles that instances exist for, the largest first. 64x64 needs half of
// the threadgroup traffic of the 32x32 that MLX uses everywhere. llama.cpp
// (64x32) and uzu (64x64) found this size best for long prompts on M1 to M4. In
// float32 it does not fit.
inline constexpr Tile kTiles[] = {
    {64, 64, 32, 2, 2}, {64, 32, 32, 2, 2}, {32, 32, 32, 2, 2}};

// qmm_splitk: the largest, because its parts fill the cores at any size.
constexpr const Tile& split_tile(Dtype dtype) {
  return kTiles[dtype == Dtype::kFloat32 ? 1 : 0];
}

// gather_qmm: a tile has rows of one expert, and experts have few rows each. 16
// rows, which MLX uses for all, and 32.
inline constexpr Tile kGatherTiles[] = {{16, 32, 32, 1, 2}, {32, 32, 32, 2, 2}};

// Returns the tile that takes the fewest cycles for experts of `rows` rows. The
// last tile of each is half empty on average. For each code, a tile takes 6
// cycles of a lane to decode it, and 8 for every 8 rows (plan/dense.cpp). Not
// measured.
constexpr const Tile& gather_tile(int rows) {
  auto cycles = [&](const Tile& tile) {
    return (2.0 * rows / tile.BM + 1) * (6 + tile.BM);
  };
  return *std::ranges::min_element(kGatherTiles, {}, cycles);
}

// qmm_n: BM x BN of y by BK rows of w.
struct NotTransposedTile : Tile {
  // Two blocks each of x and w where they fit, or else one.
  constexpr uint32_t threadgroup_bytes(const Types& types) const {
    uint32_t stage = padded(BM, BK, types.dtype) + padded(BK, BN, types.dtype);
    return 2 * stage <= NIBBLE_THREADGROUP_BYTES ? 2 * stage : stage;
  }
};

// BN codes are whole cache lines of 64 bytes of a row, because another
// threadgroup would read the rest of a line again: one line at 8, 4 and 2 bits,
// three at 3 and 6, five at 5. BK is as large as the memory for two blocks of w
// allows, or for one: two of 512 columns in float32 do not fit. BK * BN for
// each barrier is at least 2048, as many products as 64 columns and 32 rows.
// There are at most eight simdgroups: the threads that a pipeline may launch
// shrink with its registers.
constexpr NotTransposedTile not_transposed_tile(const Types& types) {
  int columns = 16 * types.format.run_codes();
  int values = types.dtype == Dtype::kFloat32 ? 2048 : 4096;  // 8 KiB of w
  int rows = std::clamp(values / columns, 8, 32);
  if (columns == 64) return {{32, columns, rows, 2, 2}};
  return {{32, columns, rows, 1, std::min(columns / 32, 8)}};
}

// True if a tile is valid for these types on a device: the only statement of
// the conditions.
constexpr bool supports(const Tile& tile,
                        const Types& types,
                        const DeviceProfile& device) {
  bool fragments = tile.BM % (tile.WM * kFragment) == 0 &&
                   tile.BN % (tile.WN * kFragment) == 0 &&
                   tile.BK % kFragment == 0;
  // Every thread moves 16 bytes of x, and four threads share a row of w.
  auto item = static_cast<int>(size_of(types.dtype));
  auto threads = static_cast<int>(tile.threads().volume());
  bool shares = tile.BM * tile.BK * item % (16 * threads) == 0 &&
                tile.BN % (threads / 4) == 0;
  // A block of K lies inside one group or is two, and is made of whole words.
  bool groups = (types.format.group_size % tile.BK == 0 ||
                 types.format.group_size * 2 == tile.BK) &&
                tile.BK * types.format.bits % 32 == 0;
  bool fits = tile.threads().volume() <= device.max_threads_per_threadgroup &&
              tile.threadgroup_bytes(types) <= device.max_threadgroup_bytes;
  return fragments && shares && groups && fits;
}

// cuda_qmm_skinny: kernels/cuda/qmm_skinny.h explains the numbers.
struct CudaTile {
  int BM, BN, WK, F, ahead;
  int blocks = 1;  // on a multiprocessor at a time: limits registers

  bool operator==(const CudaTile&) const = default;
  std::vector<int> shape() const { return {BM, BN, WK, F, ahead, blocks}; }
  constexpr Dim3 grid(const Extent& y) const { return y.blocks(BM, BN); }
  constexpr Dim3 threads() const { return {32u * WK, 1, 1}; }
  // The threads of a tile from the numbers of its shape().
  static int threads_of(const std::vector<int>& shape) { return 32 * shape[2]; }
  // Every warp keeps its sums, in float.
  constexpr uint32_t threadgroup_bytes(const Types&) const {
    return sizeof(float) * BM * BN * WK;
  }
};

// A tile of two products: swiglu.h. Capability 8.9 has shared memory for the
// sums of this many rows.
inline constexpr int kMostPairRows = 32;
struct CudaPairTile : CudaTile {
  constexpr uint32_t threadgroup_bytes(const Types& types) const {
    return 2 * CudaTile::threadgroup_bytes(types);
  }
};

// The tiles for up to BM rows of x. Tiles of one WK and F add up a row in the
// same order.
struct CudaTiles {
  CudaTile batch_invariant;
  // By columns of y, and `deep` by those of w: limits in plan/cuda.cpp.
  // `narrow` is `many` for formats that wider blocks make slower.
  CudaTile few, some, deep, many, narrow;
};

// The fastest of some 80 tiles on an H200 (docs/results/cuda.md). Measured at 4
// bits, groups of 64 and bfloat16. Matrices had 1024, 4096 and 14336 rows of
// 4096 columns, and 4096 rows of 14336. With four blocks of 32 columns of y on
// each of 132 multiprocessors, or seven of 16, all of 14336 columns run at
// once.
inline constexpr CudaTiles kCudaTiles[] = {
    {{8, 16, 8, 4, 1, 2},
     {8, 16, 16, 4, 0},
     {8, 16, 8, 4, 1, 2},
     {8, 32, 16, 2, 1},
     {8, 32, 4, 4, 0, 4},
     {8, 16, 4, 4, 0, 7}},
    {{16, 32, 8, 4, 0},
     {16, 16, 8, 2, 1, 2},
     {16, 32, 8, 4, 0},
     {16, 32, 16, 2, 0},
     {16, 64, 4, 2, 0},
     {16, 64, 4, 2, 0}},
    {{32, 32, 8, 4, 0},
     {32, 16, 8, 2, 1},
     {32, 32, 8, 4, 0},
     {32, 32, 8, 4, 0},
     {32, 64, 4, 1, 1},
     {32, 64, 4, 1, 1}},
    {{64, 16, 8, 4, 0},
     {64, 16, 8, 4, 0},
     {64, 32, 8, 2, 0},
     {64, 32, 8, 2, 0},
     {64, 32, 4, 2, 0},
     {64, 32, 4, 2, 0}},
};

// cuda_qmm_wgmma: rows of y of a block, and pairs of groups of threads that
// take steps in turn.
struct CudaWgmmaTile {
  int BM, pairs;
  double step;     // microseconds on an H200 (docs/results/cuda.md)
  int blocks = 1;  // on a multiprocessor at a time

  std::vector<int> shape() const { return {BM, pairs, blocks}; }
  // Blocks of the same columns are neighbours.
  constexpr Dim3 grid(const Extent& y) const {
    Dim3 tiles = y.blocks(BM, NIBBLE_WGMMA_COLUMNS);
    return {tiles.x * tiles.y, 1, tiles.z};
  }
  constexpr Dim3 threads() const {
    return {NIBBLE_WGMMA_THREADS(uint32_t(pairs)), 1, 1};
  }
  // The threads of a tile from the numbers of its shape().
  static int threads_of(const std::vector<int>& shape) {
    return NIBBLE_WGMMA_THREADS(shape[1]);
  }
  // The stages, which begin at a multiple of 1024 bytes.
  constexpr uint32_t threadgroup_bytes(const Types&) const {
    return NIBBLE_WGMMA_STAGE_BYTES + 1024;
  }
};
inline constexpr CudaWgmmaTile kWgmmaTiles[] = {{256, 1, 0.8}, {128, 2, 0.58}};

// Types and formats of the kernels for CUDA. Codes of one group share a step of
// the tensor core. Scales have the type of the activations, or of one byte.
inline bool supported_on_cuda(const Types& types) {
  return types.dtype != Dtype::kFloat32 &&
         (types.scale_dtype == types.dtype || is_byte(types.scale_dtype)) &&
         types.format.mode != Mode::kSymmetric;
}

// The same of cuda_qmm_wgmma.
inline bool supported_by_wgmma(const Types& types) {
  return supported_on_cuda(types) && types.format.mode == Mode::kAffine &&
         types.format.bits == 4;
}

// The columns of w that kernels for CUDA take at a time, at least. A block of
// nvfp4 has one group for each of four lanes.
constexpr int cuda_columns(const QuantFormat& format) {
  return std::max(format.group_size, format.mode == Mode::kNvfp4 ? 64 : 32);
}

}  // namespace nibble

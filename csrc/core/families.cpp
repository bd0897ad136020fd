#include "csrc/core/families.h"

#include <algorithm>
#include <cassert>

#include "csrc/core/tiles.h"

namespace nibble {
namespace {

using enum Family;

constexpr std::string_view kRows[] = {"r"};
constexpr std::string_view kSkinny[] = {"bm", "bn", "wk"};
constexpr std::string_view kCuda[] = {"bm", "bn", "wk", "f", "ahead", "o"};
constexpr std::string_view kWgmma[] = {"bm", "pairs", "o"};
constexpr std::string_view kTile[] = {"bm", "bn", "bk", "wm", "wn"};

Shapes no_numbers(const Types&) {
  return {{}};
}

Shapes multi_rows(const Types&) {
  Shapes all;
  for (int rows : kMultiRows) {
    all.push_back({rows});
  }
  return all;
}

Shapes joint_multi_rows(const Types& types) {
  Shapes all = multi_rows(types);
  std::erase_if(all,
                [](const auto& shape) { return shape[0] > kLastJointForm; });
  return all;
}

Shapes skinny_tiles(const Types&) {
  Shapes all;
  for (const SkinnyTile& tile : kSkinnyTiles) {
    all.push_back(tile.shape());
  }
  return all;
}

Shapes tiles(const Types& types) {
  Shapes all;
  for (const Tile& tile : kTiles) {
    if (supports(tile, types, DeviceProfile{})) {
      all.push_back(tile.shape());
    }
  }
  return all;
}

Shapes half_tiles(const Types& types) {
  return types.dtype == Dtype::kBFloat16 ? tiles(types) : Shapes{};
}

Shapes splitk_tile(const Types& types) {
  return {split_tile(types.dtype).shape()};
}

Shapes gather_tiles(const Types&) {
  Shapes all;
  for (const Tile& tile : kGatherTiles) {
    all.push_back(tile.shape());
  }
  return all;
}

Shapes cuda_tiles(const Types& types) {
  Shapes all;
  if (supported_on_cuda(types)) {
    for (const CudaTiles& t : kCudaTiles) {
      for (const CudaTile& tile :
           {t.batch_invariant, t.few, t.some, t.deep, t.many, t.narrow}) {
        if (std::ranges::find(all, tile.shape()) == all.end()) {
          all.push_back(tile.shape());
        }
      }
    }
  }
  return all;
}

Shapes wgmma_tiles(const Types& types) {
  Shapes all;
  if (supported_by_wgmma(types)) {
    for (const CudaWgmmaTile& tile : kWgmmaTiles) {
      all.push_back(tile.shape());
    }
  }
  return all;
}

// Gradients depend on codes alone: one kernel for all types of scales.
Shapes of_gradients(const Types& types) {
  bool named =
      types.format.info().stores_biases && gradient_types(types) == types;
  return named ? Shapes{{}} : Shapes{};
}

Shapes no_numbers_on_cuda(const Types& types) {
  return supported_on_cuda(types) ? Shapes{{}} : Shapes{};
}

Shapes cuda_gather_tiles(const Types& types) {
  Shapes all;
  if (supported_on_cuda(types)) {
    for (const CudaTiles& t : kCudaTiles) {
      all.push_back(t.batch_invariant.shape());
    }
  }
  return all;
}

Shapes cuda_pair_tiles(const Types& types) {
  Shapes all = cuda_gather_tiles(types);
  std::erase_if(all,
                [](const auto& shape) { return shape[0] > kMostPairRows; });
  return all;
}

Shapes n_tile(const Types& types) {
  return {not_transposed_tile(types).shape()};
}

// clang-format off
const FamilyRow kFamilies[] = {
    {kQmv, "qmv", "qmv.h",
     "dense", "Qmv", {}, no_numbers,
     {.planner = Planner::kMatmul}, kJointQmv},
    {kQmvQuad, "qmv_quad", "qmv.h",
     "dense", "QmvQuad", {}, no_numbers,
     {.planner = Planner::kMatmul}},
    {kQmvMulti, "qmv_multi", "qmv_multi.h",
     "dense", "QmvMulti", kRows, multi_rows,
     {.planner = Planner::kMatmul}, kJointQmvMulti},
    {kQmmSkinny, "qmm_skinny", "qmm_skinny.h",
     "dense", "QmmSkinny", kSkinny, skinny_tiles,
     {.planner = Planner::kMatmul, .batch_invariant = true}, kJointQmmSkinny},
    {kQmm, "qmm", "qmm.h",
     "dense", "Qmm", kTile, tiles,
     {.planner = Planner::kMatmul, .in_half = false}},
    {kQmmHalf, "qmm_half", "qmm_half.h",
     "dense", "QmmHalf", kTile, half_tiles,
     {.planner = Planner::kMatmul, .in_half = true}},
    {kQmmSplitk, "qmm_splitk", "qmm_splitk.h",
     "", "", kTile, splitk_tile,
     {.planner = Planner::kMatmul}},
    {kQmmSplitkSum, "qmm_splitk_sum", "qmm_splitk.h",
     "", "", {}, no_numbers,
     {.planner = Planner::kMatmul}},
    {kQvm, "qvm", "qvm.h",
     "dense", "Qvm", {}, no_numbers,
     {.planner = Planner::kMatmul, .transpose = false, .batch_invariant = true}},
    {kQmmN, "qmm_n", "qmm_n.h",
     "dense", "QmmN", kTile, n_tile,
     {.planner = Planner::kMatmul, .transpose = false}},
    {kJointQmv, "joint_qmv", "joint.h",
     "joint", "Qmv", {}, no_numbers,
     {.planner = Planner::kJoint}},
    {kJointQmvMulti, "joint_qmv_multi", "joint.h",
     "joint", "QmvMulti", kRows, joint_multi_rows,
     {.planner = Planner::kJoint}},
    {kJointQmmSkinny, "joint_qmm_skinny", "joint.h",
     "joint", "QmmSkinny", kSkinny, skinny_tiles,
     {.planner = Planner::kJoint, .batch_invariant = true}},
    {kGatherQmv, "gather_qmv", "qmv.h",
     "gathered", "Qmv", {}, no_numbers,
     {.planner = Planner::kGather}},
    {kGatherQmmSkinny, "gather_qmm_skinny", "qmm_skinny.h",
     "gathered", "QmmSkinny", kSkinny, skinny_tiles,
     {.planner = Planner::kGather, .batch_invariant = true}},
    {kGatherQmm, "gather_qmm", "gather_qmm.h",
     "gathered_sorted", "Qmm", kTile, gather_tiles,
     {.planner = Planner::kGather, .sorted = true}},
    {kGatherQvm, "gather_qvm", "qvm.h",
     "gathered", "Qvm", {}, no_numbers,
     {.planner = Planner::kGather, .transpose = false, .batch_invariant = true}},
    {kGatherQmmN, "gather_qmm_n", "qmm_n.h",
     "gathered", "QmmN", kTile, n_tile,
     {.planner = Planner::kGather, .transpose = false}},
    {kGatherSortedQmmN, "gather_sorted_qmm_n", "gather_qmm.h",
     "gathered_sorted", "QmmN", kTile, n_tile,
     {.planner = Planner::kGather, .transpose = false, .sorted = true}},
    {kSwiglu, "swiglu", "swiglu.h",
     "", "", {}, no_numbers,
     {.planner = Planner::kSwiglu}},
    {kGatherSwiglu, "gather_swiglu", "swiglu.h",
     "", "", {}, no_numbers,
     {.planner = Planner::kGatherSwiglu}},
    {kDequantize, "dequantize", "dequantize.h",
     "", "", {}, no_numbers,
     {.planner = Planner::kDequantize}},
    {kGroupGradient, "group_gradient", "group_gradient.h",
     "", "", {}, of_gradients,
     {.planner = Planner::kGradient, .transpose = {}, .batch_invariant = true}},
    {kGatherGroupGradient, "gather_group_gradient", "group_gradient.h",
     "", "", {}, of_gradients,
     {.planner = Planner::kGatherGradient, .transpose = {},
      .batch_invariant = true}},
    {kCudaQmmSkinny, "cuda_qmm_skinny", "cuda/qmm_skinny.h",
     "NIBBLE_MATMUL_KERNEL", "QmmSkinny", kCuda, cuda_tiles,
     {.planner = Planner::kMatmul, .batch_invariant = true}, {}, Api::kCuda},
    {kCudaQmmWgmma, "cuda_qmm_wgmma", "cuda/qmm_wgmma.h",
     "NIBBLE_WGMMA_KERNEL", "QmmWgmma", kWgmma, wgmma_tiles,
     {.planner = Planner::kMatmul}, {}, Api::kCuda},
    {kCudaGatherQmmSkinny, "cuda_gather_qmm_skinny", "cuda/qmm_skinny.h",
     "NIBBLE_GATHER_KERNEL", "QmmSkinny", kCuda, cuda_gather_tiles,
     {.planner = Planner::kGather, .batch_invariant = true}, {}, Api::kCuda},
    {kCudaGatherSorted, "cuda_gather_sorted", "cuda/qmm_skinny.h",
     "NIBBLE_SORTED_KERNEL", "QmmSkinny", kCuda, cuda_gather_tiles,
     {.planner = Planner::kGather, .batch_invariant = true, .sorted = true}, {},
     Api::kCuda},
    {kCudaDequantize, "cuda_dequantize", "cuda/dequantize.h",
     "NIBBLE_DEQUANTIZE_KERNEL", "Dequantize", {}, no_numbers_on_cuda,
     {.planner = Planner::kDequantize}, {}, Api::kCuda},
    {kCudaSwiglu, "cuda_swiglu", "cuda/swiglu.h",
     "NIBBLE_SWIGLU_KERNEL", "Swiglu", kCuda, cuda_pair_tiles,
     {.planner = Planner::kSwiglu, .batch_invariant = true}, {}, Api::kCuda},
    {kCudaGatherSwiglu, "cuda_gather_swiglu", "cuda/swiglu.h",
     "NIBBLE_GATHER_SWIGLU_KERNEL", "Swiglu", kCuda, cuda_pair_tiles,
     {.planner = Planner::kGatherSwiglu, .batch_invariant = true}, {},
     Api::kCuda},
    {kCudaSortedSwiglu, "cuda_sorted_swiglu", "cuda/swiglu.h",
     "NIBBLE_SORTED_SWIGLU_KERNEL", "Swiglu", kCuda, cuda_pair_tiles,
     {.planner = Planner::kGatherSwiglu, .batch_invariant = true,
      .sorted = true}, {}, Api::kCuda},
};
// clang-format on

}  // namespace

std::span<const FamilyRow> families() {
  return kFamilies;
}

const FamilyRow& row_of(Family family) {
  const FamilyRow& row = kFamilies[static_cast<size_t>(family)];
  assert(row.family == family);
  return row;
}

}  // namespace nibble

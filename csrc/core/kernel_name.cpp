#include "csrc/core/kernel_name.h"

#include <cassert>
#include <sstream>
#include <unordered_map>

#include "csrc/core/tiles.h"

namespace nibble {
namespace {

// What a family is called, where it lives, what the numbers of its shape are
// called, and the entry of kernels/product.h that takes it under `type`; a
// family without one is an entry itself.
struct FamilyInfo {
  std::string_view name;
  std::string_view header;
  std::vector<std::string_view> labels;
  std::string_view entry = "";
  std::string_view type = "";
};

constexpr Family kFamilies[] = {
    Family::kQmv,
    Family::kQmvQuad,
    Family::kQmvMulti,
    Family::kQmmSkinny,
    Family::kQmm,
    Family::kQmmHalf,
    Family::kQmmSplitk,
    Family::kQmmSplitkSum,
    Family::kQvm,
    Family::kQmmN,
    Family::kJointQmv,
    Family::kJointQmvMulti,
    Family::kJointQmmSkinny,
    Family::kGatherQmv,
    Family::kGatherQmmSkinny,
    Family::kGatherQmm,
    Family::kGatherQvm,
    Family::kGatherQmmN,
    Family::kGatherSortedQmmN,
    Family::kSwiglu,
    Family::kGatherSwiglu,
    Family::kDequantize,
};

FamilyInfo info(Family family) {
  const std::vector<std::string_view> kNone;
  const std::vector<std::string_view> kSkinny{"bm", "bn", "wk"};
  const std::vector<std::string_view> kTile{"bm", "bn", "bk", "wm", "wn"};
  constexpr std::string_view kDense = "dense";
  constexpr std::string_view kJoint = "joint";
  constexpr std::string_view kGathered = "gathered";
  constexpr std::string_view kGatheredSorted = "gathered_sorted";
  switch (family) {
    case Family::kQmv:
      return {"qmv", "qmv.h", kNone, kDense, "Qmv"};
    case Family::kQmvQuad:
      return {"qmv_quad", "qmv.h", kNone, kDense, "QmvQuad"};
    case Family::kQmvMulti:
      return {"qmv_multi", "qmv_multi.h", {"r"}, kDense, "QmvMulti"};
    case Family::kQmmSkinny:
      return {"qmm_skinny", "qmm_skinny.h", kSkinny, kDense, "QmmSkinny"};
    case Family::kQmm:
      return {"qmm", "qmm.h", kTile, kDense, "Qmm"};
    case Family::kQmmHalf:
      return {"qmm_half", "qmm_half.h", kTile, kDense, "QmmHalf"};
    case Family::kQmmSplitk:
      return {"qmm_splitk", "qmm_splitk.h", kTile};
    case Family::kQmmSplitkSum:
      return {"qmm_splitk_sum", "qmm_splitk.h", kNone};
    case Family::kQvm:
      return {"qvm", "qvm.h", kNone, kDense, "Qvm"};
    case Family::kQmmN:
      return {"qmm_n", "qmm_n.h", kTile, kDense, "QmmN"};
    case Family::kJointQmv:
      return {"joint_qmv", "joint.h", kNone, kJoint, "Qmv"};
    case Family::kJointQmvMulti:
      return {"joint_qmv_multi", "joint.h", {"r"}, kJoint, "QmvMulti"};
    case Family::kJointQmmSkinny:
      return {"joint_qmm_skinny", "joint.h", kSkinny, kJoint, "QmmSkinny"};
    case Family::kGatherQmv:
      return {"gather_qmv", "qmv.h", kNone, kGathered, "Qmv"};
    case Family::kGatherQmmSkinny:
      return {
          "gather_qmm_skinny", "qmm_skinny.h", kSkinny, kGathered, "QmmSkinny"};
    case Family::kGatherQvm:
      return {"gather_qvm", "qvm.h", kNone, kGathered, "Qvm"};
    case Family::kGatherQmmN:
      return {"gather_qmm_n", "qmm_n.h", kTile, kGathered, "QmmN"};
    case Family::kGatherQmm:
      return {"gather_qmm", "gather_qmm.h", kTile, kGatheredSorted, "Qmm"};
    case Family::kGatherSortedQmmN:
      return {"gather_sorted_qmm_n",
              "gather_qmm.h",
              kTile,
              kGatheredSorted,
              "QmmN"};
    case Family::kSwiglu:
      return {"swiglu", "swiglu.h", kNone};
    case Family::kGatherSwiglu:
      return {"gather_swiglu", "swiglu.h", kNone};
    case Family::kDequantize:
      return {"dequantize", "dequantize.h", kNone};
  }
  return {};
}

// The shapes that a family comes in for these types and this format.
std::vector<std::vector<int>> shapes(Family family,
                                     Dtype dtype,
                                     const QuantFormat& format) {
  std::vector<std::vector<int>> all;
  switch (family) {
    case Family::kQmv:
    case Family::kQmvQuad:
    case Family::kQmmSplitkSum:
    case Family::kQvm:
    case Family::kJointQmv:
    case Family::kGatherQmv:
    case Family::kGatherQvm:
    case Family::kSwiglu:
    case Family::kGatherSwiglu:
    case Family::kDequantize:
      return {{}};
    case Family::kQmmN:
    case Family::kGatherQmmN:
    case Family::kGatherSortedQmmN:
      return {not_transposed_tile(dtype, format).shape()};
    case Family::kQmvMulti:
      for (int rows : kMultiRows) {
        all.push_back({rows});
      }
      return all;
    case Family::kJointQmvMulti:
      for (int rows : kMultiRows) {
        if (rows <= kLastJointForm) {
          all.push_back({rows});
        }
      }
      return all;
    case Family::kQmmSkinny:
    case Family::kJointQmmSkinny:
    case Family::kGatherQmmSkinny:
      for (const SkinnyTile& tile : kSkinnyTiles) {
        all.push_back(tile.shape());
      }
      return all;
    case Family::kQmmSplitk:
      return {split_tile(dtype).shape()};
    case Family::kGatherQmm:
      return {kGatherTile.shape()};
    case Family::kQmmHalf:
      if (dtype != Dtype::kBFloat16) {
        return {};
      }
      return shapes(Family::kQmm, dtype, format);
    case Family::kQmm:
      for (const Tile& tile : kTiles) {
        if (supports(tile, dtype, format, DeviceProfile{})) {
          all.push_back(tile.shape());
        }
      }
      return all;
  }
  return all;
}

}  // namespace

std::string kernel_name(const KernelId& id) {
  const FamilyInfo family = info(id.family);
  assert(id.shape.size() == family.labels.size());
  std::ostringstream out;
  out << family.name << '_' << short_name(id.dtype) << '_'
      << short_name(id.scale_dtype) << "_b" << id.format.bits << "_g"
      << id.format.group_size << mode_info(id.format.mode).label;
  for (size_t i = 0; i < id.shape.size(); ++i) {
    out << '_' << family.labels[i] << id.shape[i];
  }
  return out.str();
}

std::optional<KernelId> parse_kernel_name(std::string_view name) {
  // kernel_name() is injective on the set of all instances: looking up keeps
  // the grammar in one function.
  static const auto kByName = [] {
    std::unordered_map<std::string, KernelId> by_name;
    for (KernelId& id : instances()) {
      by_name.emplace(kernel_name(id), std::move(id));
    }
    return by_name;
  }();
  auto found = kByName.find(std::string(name));
  return found == kByName.end() ? std::nullopt : std::optional(found->second);
}

std::string template_call(const KernelId& id) {
  const FamilyInfo family = info(id.family);
  std::ostringstream numbers;
  for (size_t i = 0; i < id.shape.size(); ++i) {
    numbers << (i ? ", " : "") << id.shape[i];
  }
  std::ostringstream types;
  types << metal_name(id.dtype)
        << ", nibble::" << mode_info(id.format.mode).kernel_type << '<'
        << metal_name(id.scale_dtype) << ", " << id.format.bits << ", "
        << id.format.group_size << '>';
  bool shaped = !id.shape.empty();
  std::ostringstream out;
  if (family.entry.empty()) {
    out << family.name << '<' << types.str() << (shaped ? ", " : "")
        << numbers.str() << '>';
  } else {
    out << family.entry << "<nibble::" << family.type
        << (shaped ? "<" + numbers.str() + ">" : "") << ", " << types.str()
        << '>';
  }
  return out.str();
}

std::string kernel_header(const KernelId& id) {
  return std::string(info(id.family).header);
}

std::vector<KernelId> instances(Family family,
                                Dtype dtype,
                                Dtype scale_dtype,
                                const QuantFormat& format) {
  std::vector<KernelId> all;
  for (auto& shape : shapes(family, dtype, format)) {
    all.push_back({family, dtype, scale_dtype, format, std::move(shape)});
  }
  return all;
}

std::vector<KernelId> instances() {
  std::vector<KernelId> all;
  for (Family family : kFamilies) {
    for (Dtype dtype : kDtypes) {
      for (Dtype scale_dtype : kDtypes) {
        for (int bits : kBits) {
          for (int group_size : kGroupSizes) {
            for (const ModeInfo& mode : kModes) {
              QuantFormat format{bits, group_size, mode.mode};
              for (KernelId& id :
                   instances(family, dtype, scale_dtype, format)) {
                all.push_back(std::move(id));
              }
            }
          }
        }
      }
    }
  }
  return all;
}

}  // namespace nibble

#include "csrc/core/kernel_name.h"

#include <sstream>

namespace nibble {
namespace {

constexpr Family kFamilies[] = {
    Family::kQmv, Family::kQmm, Family::kDequantize};

constexpr std::string_view family_name(Family family) {
  switch (family) {
    case Family::kQmv:
      return "qmv";
    case Family::kQmm:
      return "qmm";
    case Family::kDequantize:
      return "dequantize";
  }
  return "";
}

}  // namespace

std::string kernel_name(const KernelId& id) {
  std::ostringstream out;
  out << family_name(id.family) << '_' << short_name(id.dtype) << '_'
      << short_name(id.scale_dtype) << "_b" << id.format.bits << "_g"
      << id.format.group_size;
  if (id.tile) {
    out << "_bm" << id.tile->BM << "_bn" << id.tile->BN << "_bk" << id.tile->BK
        << "_wm" << id.tile->WM << "_wn" << id.tile->WN;
  }
  return out.str();
}

std::optional<KernelId> parse_kernel_name(std::string_view name) {
  // The set is small and kernel_name() is injective on it: looking up keeps
  // the grammar in one function.
  for (const KernelId& id : instances()) {
    if (kernel_name(id) == name) {
      return id;
    }
  }
  return std::nullopt;
}

std::string template_call(const KernelId& id) {
  std::ostringstream out;
  out << family_name(id.family) << '<' << metal_name(id.dtype) << ", "
      << metal_name(id.scale_dtype) << ", " << id.format.bits << ", "
      << id.format.group_size;
  if (id.tile) {
    out << ", " << id.tile->BM << ", " << id.tile->BN << ", " << id.tile->BK
        << ", " << id.tile->WM << ", " << id.tile->WN;
  }
  out << '>';
  return out.str();
}

std::string kernel_header(const KernelId& id) {
  return std::string(family_name(id.family)) + ".h";
}

std::vector<KernelId> instances() {
  std::vector<KernelId> all;
  for (Family family : kFamilies) {
    for (Dtype dtype : kDtypes) {
      for (Dtype scale_dtype : kDtypes) {
        for (int bits : kHeldBits) {
          for (int group_size : kHeldGroupSizes) {
            KernelId id{family, dtype, scale_dtype, {bits, group_size}, {}};
            if (family != Family::kQmm) {
              all.push_back(id);
              continue;
            }
            for (const Tile& tile : kTiles) {
              if (supports(tile, dtype, id.format, DeviceProfile{})) {
                id.tile = tile;
                all.push_back(id);
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

#include "csrc/core/kernel_name.h"

#include <cassert>
#include <sstream>
#include <unordered_map>

namespace nibble {
namespace {

// All types of all modes.
std::vector<Types> all_types(Api api) {
  std::vector<Types> all;
  for (const ModeInfo& mode : kModes) {
    for (Dtype dtype : kDtypes) {
      for (Dtype scale_dtype : mode.scale_dtypes) {
        for (int bits : api == Api::kCuda ? mode.bits : mode.gpu_bits) {
          for (int group_size : mode.group_sizes) {
            all.push_back({dtype, scale_dtype, {bits, group_size, mode.mode}});
          }
        }
      }
    }
  }
  return all;
}

}  // namespace

std::string kernel_name(const KernelId& id) {
  const FamilyRow& family = row_of(id.family);
  assert(id.shape.size() == family.labels.size());
  std::ostringstream out;
  out << family.name << '_' << short_name(id.dtype) << '_'
      << short_name(id.scale_dtype) << "_b" << id.format.bits << "_g"
      << id.format.group_size << id.format.info().label;
  for (size_t i = 0; i < id.shape.size(); ++i) {
    out << '_' << family.labels[i] << id.shape[i];
  }
  return out.str();
}

std::optional<KernelId> parse_kernel_name(std::string_view name) {
  // kernel_name() is injective on the set of all instances. A look-up keeps the
  // grammar in one function.
  static const auto kByName = [] {
    std::unordered_map<std::string, KernelId> by_name;
    for (Api api : {Api::kMetal, Api::kCuda}) {
      for (KernelId& id : instances(api)) {
        by_name.emplace(kernel_name(id), std::move(id));
      }
    }
    return by_name;
  }();
  auto found = kByName.find(std::string(name));
  return found == kByName.end() ? std::nullopt : std::optional(found->second);
}

std::string template_call(const KernelId& id) {
  const FamilyRow& family = row_of(id.family);
  std::ostringstream numbers;
  for (size_t i = 0; i < id.shape.size(); ++i) {
    numbers << (i ? ", " : "") << id.shape[i];
  }
  std::ostringstream types;
  types << metal_name(id.dtype) << ", nibble::" << id.format.info().kernel_type
        << '<' << metal_name(id.scale_dtype) << ", " << id.format.bits << ", "
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
  return std::string(row_of(id.family).header);
}

std::vector<KernelId> instances(Family family, const Types& types) {
  std::vector<KernelId> all;
  for (auto& shape : row_of(family).shapes(types)) {
    all.push_back({types, family, std::move(shape)});
  }
  return all;
}

std::vector<KernelId> instances(Api api) {
  std::vector<KernelId> all;
  for (const FamilyRow& row : families()) {
    if (row.api != api) {
      continue;
    }
    for (const Types& types : all_types(api)) {
      for (KernelId& id : instances(row.family, types)) {
        all.push_back(std::move(id));
      }
    }
  }
  return all;
}

}  // namespace nibble

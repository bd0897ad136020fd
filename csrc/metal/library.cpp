#include "csrc/metal/library.h"

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <vector>

#include "csrc/core/error.h"
#include "csrc/core/kernel_name.h"
#include "csrc/core/kernel_source.h"
#include "csrc/metal/encoder.h"

namespace nibble::metal {
namespace {

namespace mx = mlx::core;

std::atomic<bool> fences = false;

// Kernels that are compiled in one library.
struct Group {
  std::string names;
  std::vector<KernelId> ids;
};

struct Groups {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<const Group>> by_kernel;
};

Groups& groups() {
  static Groups the_groups;
  return the_groups;
}

KernelId id_of(const std::string& kernel) {
  std::optional<KernelId> id = parse_kernel_name(kernel);
  require(id.has_value(),
          "pipeline",
          "a known kernel was required but got ",
          kernel);
  return *id;
}

std::string source_of(const std::string& kernel) {
  return is_contiguous_kernel(kernel) ? contiguous_source()
                                      : kernel_source({id_of(kernel)}, fences);
}

// The name names this package, its version and every parameter: MLX finds a
// library by its name alone, among those of all packages.
MTL::Library* compiled(mx::metal::Device& device,
                       const std::string& names,
                       const std::function<std::string()>& source) {
  std::string variant = fences ? "_fences_" : "_";
  return device.get_library("mlx_nibble_" NIBBLE_VERSION + variant + names,
                            source);
}

// Null if Metal refuses the library.
MTL::Library* compiled(mx::metal::Device& device, const Group& group) {
  try {
    return compiled(
        device, group.names, [&] { return kernel_source(group.ids, fences); });
  } catch (const std::runtime_error&) {
    return nullptr;
  }
}

std::shared_ptr<const Group> group_of(const std::string& kernel) {
  Groups& all = groups();
  std::lock_guard lock(all.mutex);
  auto found = all.by_kernel.find(kernel);
  return found == all.by_kernel.end() ? nullptr : found->second;
}

}  // namespace

MTL::ComputePipelineState* pipeline(mx::metal::Device& device,
                                    const std::string& kernel) {
  auto group = group_of(kernel);
  MTL::Library* library = group ? compiled(device, *group) : nullptr;
  if (library == nullptr) {
    library = compiled(device, kernel, [&] { return source_of(kernel); });
  }
  return device.get_kernel(kernel, library);
}

void set_fences(bool wanted) {
  fences = wanted;
}

void compile(const std::vector<std::string>& kernels) {
  auto group = std::make_shared<Group>();
  mx::metal::Device& device = mx::metal::device(mx::Device::gpu);
  for (const std::string& kernel : kernels) {
    if (is_contiguous_kernel(kernel)) {
      pipeline(device, kernel);
      continue;
    }
    group->ids.push_back(id_of(kernel));
    group->names += (group->names.empty() ? "" : "+") + kernel;
  }
  MTL::Library* library =
      group->ids.empty() ? nullptr : compiled(device, *group);
  if (library == nullptr) {
    return;
  }
  {
    Groups& all = groups();
    std::lock_guard lock(all.mutex);
    for (const KernelId& id : group->ids) {
      all.by_kernel[kernel_name(id)] = group;
    }
  }
  for (const KernelId& id : group->ids) {
    try {
      device.get_kernel(kernel_name(id), library);
    } catch (const std::runtime_error&) {
      // encode() names it.
    }
  }
}

}  // namespace nibble::metal

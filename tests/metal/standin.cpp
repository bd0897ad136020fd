#include <algorithm>
#include <stdexcept>

#include "mlx/backend/metal/device.h"

namespace mlx::core::metal {
namespace {

const void* buffer_of(const array& a) {
  return a.data_shared_ptr().get();
}

bool has(const std::vector<array>& arrays, const void* buffer) {
  return std::ranges::any_of(
      arrays, [&](const array& a) { return buffer_of(a) == buffer; });
}

}  // namespace

void CommandEncoder::set_compute_pipeline_state(
    MTL::ComputePipelineState* pipeline) {
  current_.pipeline = pipeline;
}

void CommandEncoder::set_input_array(const array& a, int idx, int64_t offset) {
  current_.arrays.push_back({a, idx, offset, false});
  read_.push_back(a);
}

void CommandEncoder::set_output_array(array& a, int idx, int64_t offset) {
  current_.arrays.push_back({a, idx, offset, true});
  written_.insert(buffer_of(a));
}

void CommandEncoder::add_temporary(array arr) {
  if (has(read_, buffer_of(arr))) {
    throw std::logic_error("a temporary was read before it was one");
  }
  temporaries_.push_back(std::move(arr));
}

void CommandEncoder::begin_node() {
  temporaries_.clear();
  read_.clear();
  written_.clear();
}

void CommandEncoder::end_node(const std::vector<array>& inputs) {
  for (const array& a : read_) {
    const void* buffer = buffer_of(a);
    bool temporary = has(temporaries_, buffer);
    if (temporary && !written_.contains(buffer)) {
      throw std::logic_error("a temporary was read that no launch has written");
    }
    if (!temporary && !has(inputs, buffer)) {
      throw std::logic_error("a launch read an array that nothing keeps");
    }
  }
  begin_node();
}

void CommandEncoder::dispatch_threadgroups(MTL::Size grid_dims,
                                           MTL::Size group_dims) {
  Dispatch dispatch = std::exchange(current_, {});
  dispatch.threadgroups = grid_dims;
  dispatch.threads = group_dims;
  if (run) {
    run(dispatch);
  }
}

MTL::Library* Device::get_library(
    const std::string& name, const std::function<std::string(void)>& builder) {
  auto found = libraries_.find(name);
  if (found == libraries_.end()) {
    std::string source = builder();
    compiled.push_back(name);
    for (const std::string& kernel : refused) {
      if (source.find("host_name(\"" + kernel + "\")") != std::string::npos) {
        throw std::runtime_error(
            "[metal::Device] Unable to build metal library from source");
      }
    }
    found = libraries_.emplace(name, MTL::Library{name, source}).first;
  }
  return &found->second;
}

MTL::ComputePipelineState* Device::get_kernel(const std::string& base_name,
                                              MTL::Library* mtl_lib) {
  std::string entry = "host_name(\"" + base_name + "\")";
  if (mtl_lib->source.find(entry) == std::string::npos) {
    throw std::runtime_error("[metal::Device] Unable to load kernel " +
                             base_name);
  }
  auto [found, _] = pipelines_.try_emplace(
      mtl_lib->name + "/" + base_name,
      MTL::ComputePipelineState{base_name, mtl_lib, max_threads});
  found->second.max_threads = max_threads;
  return &found->second;
}

void Device::forget() {
  compiled.clear();
  pipelines_.clear();
  libraries_.clear();
}

Device& device(mlx::core::Device) {
  static Device the_device;
  return the_device;
}

CommandEncoder& get_command_encoder(Stream) {
  static CommandEncoder the_encoder;
  return the_encoder;
}

}  // namespace mlx::core::metal

// Replaces MLX's header of this name, and records the few calls that csrc/metal
// makes. The signatures are MLX's: the same source compiles with either.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/device.h"
#include "mlx/stream.h"

namespace MTL {

struct Size {
  Size(uint64_t width, uint64_t height, uint64_t depth)
      : width(width), height(height), depth(depth) {}

  uint64_t width, height, depth;
};

struct Library {
  std::string name, source;
};

struct ComputePipelineState {
  std::string kernel;
  const Library* library;
  uint64_t max_threads;

  uint64_t maxTotalThreadsPerThreadgroup() const { return max_threads; }
};

}  // namespace MTL

namespace mlx::core::metal {

// The arguments of a dispatch. It takes nothing over from the one before, so
// that a call missing in csrc/metal shows.
struct Dispatch {
  struct Array {
    array value;
    int index;
    int64_t offset;
    bool output;
  };
  struct Bytes {
    std::vector<std::byte> value;
    int index;
  };

  const MTL::ComputePipelineState* pipeline = nullptr;
  std::vector<Array> arrays;
  std::vector<Bytes> bytes;
  MTL::Size threadgroups{0, 0, 0};
  MTL::Size threads{0, 0, 0};
};

class CommandEncoder {
 public:
  void set_compute_pipeline_state(MTL::ComputePipelineState* pipeline);
  void set_input_array(const array& a, int idx, int64_t offset = 0);
  void set_output_array(array& a, int idx, int64_t offset = 0);
  template <typename T>
  void set_bytes(const T* v, int n, int idx) {
    auto* first = reinterpret_cast<const std::byte*>(v);
    current_.bytes.push_back({{first, first + n * sizeof(T)}, idx});
  }
  void add_temporary(array arr);
  void dispatch_threadgroups(MTL::Size grid_dims, MTL::Size group_dims);

  // The evaluation of a node, as MLX's scheduler sees it. The second throws if
  // a launch read an array that neither the node nor the encoder keeps until
  // the GPU is done.
  void begin_node();
  void end_node(const std::vector<array>& inputs);

  // Called with each dispatch, as a GPU would be.
  std::function<void(const Dispatch&)> run;

 private:
  Dispatch current_;
  // Buffers of the node: MLX's encoder waits for no fence of a temporary, so
  // only launches of the same node may have written one.
  std::vector<array> temporaries_, read_;
  std::set<const void*> written_;
};

class Device {
 public:
  const std::string& get_architecture() const { return architecture; }
  MTL::Library* get_library(const std::string& name,
                            const std::function<std::string(void)>& builder);
  MTL::ComputePipelineState* get_kernel(const std::string& base_name,
                                        MTL::Library* mtl_lib);

  // The GPU that a test describes.
  std::string architecture = "applegpu_g13g";
  std::set<std::string> refused;  // kernels that do not compile
  uint64_t max_threads = 1024;    // of a threadgroup, for any pipeline

  // Libraries that were compiled, in order.
  std::vector<std::string> compiled;

  // Forgets all that was compiled.
  void forget();

 private:
  std::map<std::string, MTL::Library> libraries_;
  std::map<std::string, MTL::ComputePipelineState> pipelines_;
};

Device& device(mlx::core::Device);
CommandEncoder& get_command_encoder(Stream);

}  // namespace mlx::core::metal

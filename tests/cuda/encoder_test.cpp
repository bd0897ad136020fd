// Launches of plans on a stand-in for MLX's CUDA device: this file replaces
// csrc/cuda/symbols.cpp and memory.cpp. Returns 0 if all checks hold.
#include "csrc/cuda/encoder.h"

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/core/planner.h"
#include "csrc/cuda/memory.h"
#include "csrc/cuda/symbols.h"
#include "kernels/shared.h"

namespace {

namespace mx = mlx::core;
using nibble::cuda::CudaBuffer;

// The calls that the stand-in got.
struct Node {
  std::string kernel;
  nibble::cuda::Dim3Value grid, block;
  uint32_t shared_bytes;
  std::vector<void*> pointers;
  MatmulParams params;
};
std::vector<Node> nodes;
std::vector<const std::byte*> inputs, outputs;
std::vector<std::string> compiled;  // names of programs
std::vector<int> shared_limits;
// Type, dimensions, columns, rows, bytes of a row, box, swizzle.
std::vector<std::vector<int>> maps;
int handlers = 0;
bool compiler_fails = false;

// A function is the name of its kernel; so is a program.
nibble::cuda::Nvrtc nvrtc() {
  using Program = nibble::cuda::Nvrtc::Program;
  nibble::cuda::Nvrtc f{};
  f.nvrtcCreateProgram = [](Program* program,
                            const char* text,
                            const char* name,
                            int,
                            const char* const*,
                            const char* const*) {
    bool names = std::strstr(text, name) != nullptr;
    compiled.push_back(names ? name : "");
    *program = reinterpret_cast<Program>(&compiled);
    return 0;
  };
  f.nvrtcCompileProgram = [](Program, int, const char* const* options) {
    bool right = std::string(options[0]) == "--gpu-architecture=sm_90a";
    return right && !compiler_fails ? 0 : 6;
  };
  f.nvrtcGetProgramLogSize = [](Program, size_t* size) {
    *size = 4;
    return 0;
  };
  f.nvrtcGetProgramLog = [](Program, char* log) {
    std::memcpy(log, "oops", 4);
    return 0;
  };
  f.nvrtcGetCUBINSize = f.nvrtcGetProgramLogSize;
  f.nvrtcGetCUBIN = f.nvrtcGetProgramLog;
  f.nvrtcDestroyProgram = [](Program*) { return 0; };
  return f;
}

nibble::cuda::Driver driver() {
  nibble::cuda::Driver f{};
  f.cuCtxGetDevice = [](int* device) {
    *device = 0;
    return 0;
  };
  f.cuDeviceGetAttribute = [](int* value, int attribute, int) {
    *value = attribute == 75 ? 9 : 0;
    return 0;
  };
  f.cuModuleLoadData = [](nibble::cuda::Module*, const void*) { return 0; };
  f.cuModuleGetFunction = [](nibble::cuda::Function* function,
                             nibble::cuda::Module,
                             const char* name) {
    *function = reinterpret_cast<nibble::cuda::Function>(new std::string(name));
    return 0;
  };
  f.cuFuncSetAttribute = [](nibble::cuda::Function, int, int value) {
    shared_limits.push_back(value);
    return 0;
  };
  f.cuTensorMapEncodeTiled = [](void* map,
                                int type,
                                uint32_t dimensions,
                                void* matrix,
                                const uint64_t* sizes,
                                const uint64_t* strides,
                                const uint32_t* box,
                                const uint32_t*,
                                int,
                                int swizzle,
                                int,
                                int) {
    std::memcpy(map, &matrix, sizeof(matrix));
    maps.push_back({type,
                    int(dimensions),
                    int(sizes[0]),
                    int(sizes[1]),
                    int(strides[0]),
                    int(box[0]),
                    int(box[1]),
                    swizzle});
    return reinterpret_cast<uintptr_t>(map) % 64 == 0 ? 0 : 1;
  };
  return f;
}

nibble::cuda::Mlx mlx_functions() {
  using nibble::cuda::Dim3Value;
  using nibble::cuda::Encoder;
  nibble::cuda::Mlx f{};
  f.get_command_encoder = [](mx::Stream) -> Encoder { return &nodes; };
  f.set_input_array = [](Encoder, const mx::array& a) {
    inputs.push_back(nibble::cuda::address(a));
  };
  f.set_output_array = [](Encoder, const mx::array& a) {
    outputs.push_back(nibble::cuda::address(a));
  };
  f.add_kernel_node_raw = [](Encoder,
                             nibble::cuda::Function function,
                             Dim3Value grid,
                             Dim3Value block,
                             Dim3Value,
                             uint32_t shared_bytes,
                             void** params) {
    Node node{*reinterpret_cast<std::string*>(function),
              grid,
              block,
              shared_bytes,
              {},
              {}};
    size_t count = node.kernel == "cuda_contiguous" ? 2 : 7;
    for (size_t i = 0; i < count; ++i) {
      node.pointers.push_back(*static_cast<void**>(params[i]));
    }
    if (count == 7) {
      std::memcpy(&node.params, params[7], sizeof(MatmulParams));
    }
    if (node.kernel.starts_with("cuda_qmm_wgmma")) {
      node.pointers.push_back(*static_cast<void**>(params[8]));
      node.pointers.push_back(*static_cast<void**>(params[9]));
    }
    nodes.push_back(node);
  };
  f.add_completed_handler = [](Encoder, std::function<void()>) { ++handlers; };
  return f;
}

// An array whose device memory begins at `address`. Nothing reads it.
mx::array array_at(uintptr_t address, mx::Shape shape, mx::Dtype dtype) {
  mx::array a(std::move(shape), dtype, nullptr, {});
  auto* buffer =
      new CudaBuffer{reinterpret_cast<void*>(address), a.nbytes(), 0};
  a.set_data(mx::allocator::Data(mx::allocator::Buffer(buffer),
                                 [](mx::allocator::Buffer b) {
                                   delete static_cast<CudaBuffer*>(b.ptr());
                                 }));
  return a;
}

void require(bool holds, const char* what) {
  if (!holds) {
    throw std::logic_error(what);
  }
}

}  // namespace

namespace nibble::cuda {

const Symbols* symbols() {
  static const Symbols all{mlx_functions(), driver(), nvrtc()};
  return &all;
}

void allocate(mx::array& out, mx::Stream) {
  mx::array memory = array_at(0x900000, out.shape(), out.dtype());
  out.copy_shared_buffer(memory);
}

std::byte* address(const mx::array& a) {
  const auto* buffer = static_cast<const CudaBuffer*>(a.buffer().ptr());
  return static_cast<std::byte*>(buffer->data) + a.offset();
}

}  // namespace nibble::cuda

int main() {
  using nibble::Operand;
  nibble::MatmulProblem p;
  p.M = 40;
  p.N = 4096;
  p.K = 256;
  p.epilogue.bias = true;
  auto launches = nibble::plan(p, nibble::cuda::device_profile());
  require(launches.has_value() && launches->size() == 1, "one launch");
  const nibble::LaunchPlan& plan = launches->front();
  mx::Stream stream(0, mx::Device::gpu);
  auto w = array_at(0x100000, {4096, 32}, mx::uint32);
  auto scales = array_at(0x200000, {4096, 4}, mx::float16);
  auto biases = array_at(0x300000, {4096, 4}, mx::float16);
  auto bias = array_at(0x400000, {4096}, mx::float16);
  auto x = array_at(0x500002, {40, 256}, mx::float16);  // not aligned
  auto y = array_at(0x600000, {40, 4096}, mx::float16);
  nibble::cuda::Operands operands;
  operands[Operand::kWeight] = &w;
  operands[Operand::kScales] = &scales;
  operands[Operand::kBiases] = &biases;
  operands[Operand::kBias] = &bias;
  operands[Operand::kX] = &x;
  operands[Operand::kOut] = &y;

  compiler_fails = true;
  std::string message;
  try {
    nibble::cuda::encode(*launches, operands, stream);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  require(message.find("Unable to build CUDA kernel") != message.npos &&
              message.find("oops") != message.npos,
          "the compiler's message");

  compiler_fails = false;
  compiled.clear();
  handlers = 0;
  inputs.clear();
  outputs.clear();
  for (int i = 0; i < 2; ++i) {
    nibble::cuda::encode(*launches, operands, stream);
  }
  require(compiled == std::vector<std::string>{"cuda_contiguous", plan.kernel},
          "each kernel is compiled once, from a text that names it");
  require(nodes.size() == 4 && handlers == 2, "a copy and a product, twice");
  require(nodes[0].kernel == "cuda_contiguous" &&
              nodes[0].pointers[0] == nibble::cuda::address(x),
          "x is copied");
  const Node& node = nodes[1];
  require(node.kernel == plan.kernel && node.grid.x == plan.threadgroups.x &&
              node.grid.y == plan.threadgroups.y &&
              node.block.x == plan.threads.x &&
              node.shared_bytes == plan.threadgroup_bytes,
          "the plan's launch");
  require(shared_limits ==
              std::vector<int>{static_cast<int>(plan.threadgroup_bytes)},
          "a kernel of more than 48 KiB asks for them");
  auto at = [](uintptr_t a) { return reinterpret_cast<void*>(a); };
  require(node.pointers == std::vector<void*>{at(0x100000),
                                              at(0x200000),
                                              at(0x300000),
                                              at(0x900000),
                                              at(0x400000),
                                              at(0x200000),
                                              at(0x600000)},
          "the operands in the kernel's order, x being the copy");
  require(node.params.M == 40 && node.params.N == 4096 &&
              node.params.K == 256 && node.params.epilogue == NIBBLE_BIAS,
          "the parameters");
  require(outputs.size() == 4 && inputs.size() == 2 * (1 + 6),
          "every operand is an input or the output");
  std::printf("%zu launches\n", nodes.size());

  nibble::GatherProblem chosen;
  chosen.M = 1;
  chosen.N = 64;
  chosen.K = 256;
  chosen.B = chosen.experts = 8;
  auto gathers = nibble::plan(chosen, nibble::cuda::device_profile());
  require(gathers.has_value() && gathers->size() == 1, "one launch");
  auto aligned = array_at(0x500000, {1, 256}, mx::float16);
  auto lhs = array_at(0x700004, {8}, mx::uint32);
  auto rhs = array_at(0x700028, {8}, mx::uint32);
  operands[Operand::kX] = &aligned;
  operands[Operand::kLhsIndices] = &lhs;
  operands[Operand::kRhsIndices] = &rhs;
  nodes.clear();
  nibble::cuda::encode(*gathers, operands, stream);
  require(nodes.size() == 1 && nodes[0].pointers[4] == at(0x700004) &&
              nodes[0].pointers[5] == at(0x700028),
          "indices are read where they are");

  nibble::MatmulProblem many;
  many.M = 128;
  many.N = 14336;
  many.K = 256;
  auto boxed = nibble::plan(many, nibble::cuda::device_profile());
  require(boxed.has_value() && boxed->size() == 1, "one launch");
  auto rows = array_at(0x500000, {128, 256}, mx::float16);
  auto result = array_at(0x600000, {128, 14336}, mx::float16);
  operands[Operand::kX] = &rows;
  operands[Operand::kOut] = &result;
  nodes.clear();
  nibble::cuda::encode(*boxed, operands, stream);
  require(
      nodes.size() == 1 && nodes[0].grid.x == 112 && nodes[0].block.x == 640,
      "tiles of 128 x 128");
  require(nodes[0].pointers[7] == at(0x500000) &&
              nodes[0].pointers[8] == at(0x100000),
          "maps of x and of w");
  require(
      maps == std::vector<std::vector<int>>{{1, 2, 256, 128, 512, 64, 64, 3},
                                            {2, 2, 32, 14336, 128, 8, 128, 0}},
      "the boxes of x and of w");
}

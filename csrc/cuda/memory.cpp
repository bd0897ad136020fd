#include "csrc/cuda/memory.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "csrc/cuda/symbols.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace nibble::cuda {

namespace mx = mlx::core;

namespace {

// Small results share allocations, each of which costs a node of the graph.
// They are cut from several in turn: MLX orders kernels by the allocations that
// they write, and the results of neighbouring kernels must not wait for each
// other. A part keeps its whole allocation alive.
constexpr size_t kSharedBytes = 256 << 10;
constexpr size_t kLargestPart = kSharedBytes / 4;
constexpr size_t kInTurn = 4;
constexpr size_t kPartAlignment = 256;  // as CUDA's own allocations

// MLX exports no function that allocates on the device. A concatenation does,
// and then copies its inputs: of none, none.
void allocate_alone(mx::array& out, mx::Stream stream) {
  thread_local std::unordered_map<int, std::shared_ptr<mx::Primitive>>
      of_stream;
  auto& concatenation = of_stream[stream.index];
  if (!concatenation) {
    mx::array some = mx::zeros({1}, mx::float32, stream);
    concatenation = mx::concatenate({some, some}, 0, stream).primitive_ptr();
  }
  std::vector<mx::array> outputs{out};
  concatenation->eval_gpu({}, outputs);
}

struct Shared {
  std::optional<mx::array> memory;
  size_t used = 0;
};

}  // namespace

void allocate(mx::array& out, mx::Stream stream) {
  if (out.nbytes() > kLargestPart) {
    allocate_alone(out, stream);
    return;
  }
  thread_local std::unordered_map<int, std::array<Shared, kInTurn>> of_stream;
  thread_local size_t turn = 0;
  Shared& shared = of_stream[stream.index][turn++ % kInTurn];
  if (!shared.memory || shared.used + out.nbytes() > kSharedBytes) {
    shared.memory.emplace(mx::Shape{static_cast<int>(kSharedBytes)},
                          mx::uint8,
                          nullptr,
                          std::vector<mx::array>{});
    allocate_alone(*shared.memory, stream);
    shared.used = 0;
  }
  bool line = out.size() <= 1 || std::ranges::count_if(out.shape(), [](int n) {
                                   return n > 1;
                                 }) == 1;
  mx::array::Flags flags{};
  flags.contiguous = flags.row_contiguous = true;
  flags.col_contiguous = line;
  auto begin = static_cast<int64_t>(shared.used / out.itemsize());
  out.copy_shared_buffer(
      *shared.memory, out.strides(), flags, out.size(), begin);
  shared.used +=
      (out.nbytes() + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

std::byte* address(const mx::array& a) {
  const auto* buffer = static_cast<const CudaBuffer*>(a.buffer().ptr());
  return static_cast<std::byte*>(buffer->data) + a.offset();
}

}  // namespace nibble::cuda

#include "csrc/cuda/memory.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "csrc/cuda/symbols.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace nibble::cuda {

namespace mx = mlx::core;

namespace {

// An array of no elements that is not contiguous. It lives as long as the
// process, for MLX's allocator may end before it.
const mx::array& nothing() {
  static const mx::array& none = *[] {
    auto* made = new mx::array({0}, mx::uint64, nullptr, {});
    made->copy_shared_buffer(mx::array(uint64_t{0}, mx::uint64), {1}, {}, 0);
    return made;
  }();
  return none;
}

// MLX exports no function that allocates on the device. Its operations of one
// array do, and then compute: of no elements, nothing. That adds no node to the
// graph.
mx::array allocated(size_t bytes, mx::Stream stream) {
  thread_local std::unordered_map<int, std::shared_ptr<mx::Primitive>>
      of_stream;
  auto& negation = of_stream[stream.index];
  if (!negation) {
    negation = mx::negative(mx::zeros({1}, mx::float32, stream), stream)
                   .primitive_ptr();
  }
  auto words =
      static_cast<int>((bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t));
  std::vector<mx::array> inputs{nothing()};
  std::vector<mx::array> outputs{
      mx::array({words}, mx::uint64, negation, inputs)};
  negation->eval_gpu(inputs, outputs);
  return outputs[0];
}

}  // namespace

void allocate(mx::array& out, mx::Stream stream) {
  mx::array memory = allocated(out.nbytes(), stream);
  bool line = out.size() <= 1 || std::ranges::count_if(out.shape(), [](int n) {
                                   return n > 1;
                                 }) == 1;
  mx::array::Flags flags{};
  flags.contiguous = flags.row_contiguous = true;
  flags.col_contiguous = line;
  out.copy_shared_buffer(memory, out.strides(), flags, out.size(), 0);
}

std::byte* address(const mx::array& a) {
  const auto* buffer = static_cast<const CudaBuffer*>(a.buffer().ptr());
  return static_cast<std::byte*>(buffer->data) + a.offset();
}

}  // namespace nibble::cuda

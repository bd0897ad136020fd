#include "csrc/mlx/nodes/unpack.h"

#include <memory>

#include "csrc/core/error.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/repack.h"
#include "mlx/allocator.h"
#include "mlx/ops.h"

namespace nibble {
namespace {

using cpu::PackedPart;

// A stream that every thread may use.
mx::Stream any_threads_stream() {
  static mx::Stream stream = mx::new_thread_unsafe_stream(mx::Device::cpu);
  return stream;
}

const mx::array& stand_in(const repack::Part& p) {
  switch (p.part) {
    case PackedPart::kCodes:
      return p.stored->w;
    case PackedPart::kScales:
      return p.stored->scales;
    case PackedPart::kBiases:
      break;
  }
  return *p.stored->biases;
}

bool is_same(const repack::Part& a, const repack::Part& b) {
  return a.part == b.part && a.stored->packed == b.stored->packed;
}

mx::array lazy(const std::shared_ptr<const repack::Stored>& stored,
               PackedPart part) {
  repack::Part p{stored, part};
  const mx::array& like = stand_in(p);
  return mx::array(
      like.shape(), like.dtype(), std::make_shared<Unpack>(std::move(p)), {});
}

}  // namespace

Unpack::Unpack(repack::Part part)
    : Primitive(any_threads_stream()), part_(std::move(part)) {
  repack::enter(this, part_);
}

void Unpack::eval_cpu(const std::vector<mx::array>&,
                      std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  part_.stored->packed->unpack(part_.part, out.data<uint8_t>());
}

void Unpack::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  fail(name(), "a graph built for the CPU must be run on it");
}

bool Unpack::is_equivalent(const mx::Primitive& other) const {
  return is_same(part_, static_cast<const Unpack&>(other).part_);
}

std::vector<mx::Shape> Unpack::output_shapes(const std::vector<mx::array>&) {
  return {stand_in(part_).shape()};
}

void UnpackRows::eval_cpu(const std::vector<mx::array>& inputs,
                          std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu_task::dispatch(stream(),
                     outputs,
                     [part = part_,
                      count = inputs[0].size(),
                      rows = bridge::RowContiguous(inputs[0]),
                      y = out.data<uint8_t>()]() mutable {
                       part.stored->packed->unpack_rows(
                           part.part, rows.as<int32_t>(), count, y);
                     });
}

void UnpackRows::eval_gpu(const std::vector<mx::array>&,
                          std::vector<mx::array>&) {
  fail(name(), "a graph built for the CPU must be run on it");
}

std::pair<std::vector<mx::array>, std::vector<int>> UnpackRows::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  return {
      {*repack::rows_of(lazy(part_.stored, part_.part), inputs[0], stream())},
      {axes[0]}};
}

bool UnpackRows::is_equivalent(const mx::Primitive& other) const {
  return is_same(part_, static_cast<const UnpackRows&>(other).part_);
}

std::vector<mx::Shape> UnpackRows::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[0].shape();
  shape.push_back(stand_in(part_).shape(-1));
  return {shape};
}

namespace repack {

size_t packed_bytes(const ops::QuantizedArrays& matrix,
                    const ops::QuantArgs& args) {
  return args.is_ours() ? bytes_of(matrix, args.format()) : 0;
}

std::optional<Replacement> pack(const ops::QuantizedArrays& matrix,
                                const ops::QuantArgs& args,
                                PackedMemory& memory) {
  auto stored = args.is_ours() ? store(matrix, args.format(), memory) : nullptr;
  if (!stored) {
    return std::nullopt;
  }
  std::optional<mx::array> packed_biases;
  if (stored->biases) {
    packed_biases = lazy(stored, PackedPart::kBiases);
  }
  return Replacement{lazy(stored, PackedPart::kCodes),
                     lazy(stored, PackedPart::kScales),
                     packed_biases,
                     stored->packed->bytes()};
}

std::optional<mx::array> rows_of(const mx::array& a,
                                 const mx::array& rows,
                                 mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  auto part = part_of(a);
  if (!part || a.ndim() != 2 || stream.device != mx::Device::cpu ||
      !mx::issubdtype(rows.dtype(), mx::integer)) {
    return std::nullopt;
  }
  mx::array index = mx::astype(rows, mx::int32, stream);
  if (!mx::issubdtype(rows.dtype(), mx::unsignedinteger)) {
    mx::array from_end = mx::add(index, mx::array(a.shape(0)), stream);
    index = mx::where(
        mx::less(index, mx::array(0), stream), from_end, index, stream);
  }
  auto node = std::make_shared<UnpackRows>(stream, *part);
  mx::Shape shape = node->output_shapes({index})[0];
  if (index.size() == 0) {
    return mx::zeros(shape, a.dtype(), stream);
  }
  return mx::array(std::move(shape), a.dtype(), std::move(node), {index});
}

ops::QuantizedArrays own_arrays(const ops::QuantizedArrays& q) {
  auto own = [](const mx::array& a) {
    auto part = part_of(a);
    return part ? lazy(part->stored, part->part) : a;
  };
  return {own(q.w),
          own(q.scales),
          q.biases ? std::optional(own(*q.biases)) : std::nullopt,
          q.global_scale};
}

std::vector<mx::array> unpacked(std::vector<mx::array> inputs, int first) {
  if (auto packed = find(inputs[first])) {
    const QuantFormat& format = packed->form().format;
    bool has_biases = format.has_biases();
    auto matrix = std::make_shared<Stored>(
        Stored{inputs[first],
               inputs[first + 1],
               has_biases ? std::optional(inputs[first + 2]) : std::nullopt,
               packed});
    inputs[first] = lazy(matrix, PackedPart::kCodes);
    inputs[first + 1] = lazy(matrix, PackedPart::kScales);
    if (has_biases) {
      inputs[first + 2] = lazy(matrix, PackedPart::kBiases);
    } else if (!format.info().stores_biases) {
      inputs[first + 2] = inputs[first + 1];
    }
  }
  return inputs;
}

}  // namespace repack
}  // namespace nibble

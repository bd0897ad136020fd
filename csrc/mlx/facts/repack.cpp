#include "csrc/mlx/facts/repack.h"

#include <atomic>
#include <mutex>
#include <unordered_map>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/facts/symmetric.h"
#include "mlx/transforms.h"

namespace nibble::repack {
namespace {

// A packed matrix may take 2 % more memory than its arrays: rows are padded.
constexpr size_t kMostPercent = 102;

// While an entry keeps a weak pointer to the memory, no other memory has its
// address.
struct Memory {
  std::weak_ptr<mx::array::Data> data;
  std::shared_ptr<const cpu::Packed> packed;
};

struct Registry {
  std::mutex mutex;
  std::unordered_map<const void*, Memory> memories;
  std::unordered_map<std::uintptr_t, Part> nodes;
  // Sizes of both. In most processes they are 0, and nothing is locked.
  std::atomic<size_t> memory_count = 0, node_count = 0;

  // The part that a lazy array unpacks; null for any other. Under the lock.
  const Part* part_of(const mx::array& a) const {
    std::uintptr_t node = a.primitive_id();
    auto found = node == 0 ? nodes.end() : nodes.find(node);
    return found == nodes.end() ? nullptr : &found->second;
  }
};

Registry& registry() {
  static auto& the_registry = *new Registry;  // arrays may outlive statics
  return the_registry;
}

// The number of matrices [.., N, words].
size_t count_of(const mx::array& w) {
  return w.size() / w.shape(-1) / w.shape(-2);
}

// The form of a matrix; nullopt if there is no layout for it.
std::optional<cpu::PackedForm> form_of(const ops::QuantizedArrays& arrays,
                                       QuantFormat format) {
  if (arrays.biases.has_value() != format.info().stores_biases) {
    return std::nullopt;
  }
  const mx::array &w = arrays.w, &scales = arrays.scales;
  const mx::array& biases = arrays.biases_input();
  auto scale_dtype = bridge::scale_dtype(scales.dtype(), format.info());
  if (format.mode == Mode::kAffine) {
    format.mode = affine_mode(symmetric::known(scales, biases, format.bits));
  }
  bool fits = supported(format) && scale_dtype && w.ndim() >= 2 &&
              w.size() > 0 && w.dtype() == mx::uint32 &&
              biases.dtype() == scales.dtype() && scales.ndim() == w.ndim() &&
              biases.shape() == scales.shape() && !w.is_tracer() &&
              !scales.is_tracer() && !biases.is_tracer();
  if (!fits) {
    return std::nullopt;
  }
  cpu::PackedForm form{
      w.shape(-2), scales.shape(-1) * format.group_size, format, *scale_dtype};
  mx::Shape shape = w.shape();
  shape.back() = scales.shape(-1);
  bool consistent =
      scales.shape() == shape && w.shape(-1) == format.words_per_row(form.K);
  size_t rows = form.N;
  size_t plain =
      rows * (4 * size_t(w.shape(-1)) +
              format.group_arrays() * scales.shape(-1) * scales.itemsize());
  size_t bytes = consistent ? cpu::Packed::bytes(form) : 0;
  return bytes > 0 && bytes * 100 <= plain * kMostPercent ? std::optional(form)
                                                          : std::nullopt;
}

// The bytes of matrices of this form.
size_t bytes_of(const mx::array& w, const cpu::PackedForm& form) {
  return count_of(w) * cpu::Packed::bytes(form);
}

}  // namespace

size_t bytes_of(const ops::QuantizedArrays& arrays, const QuantFormat& format) {
  auto form = form_of(arrays, format);
  return form ? bytes_of(arrays.w, *form) : 0;
}

std::shared_ptr<const Stored> store(const ops::QuantizedArrays& arrays,
                                    const QuantFormat& format,
                                    PackedMemory& pool) {
  const mx::array &w = arrays.w, &scales = arrays.scales;
  const mx::array& biases = arrays.biases_input();
  auto form = form_of(arrays, format);
  if (!form) {
    return nullptr;
  }
  mx::eval({w, scales, biases});
  bridge::RowContiguous codes(w), s(scales), b(biases);
  auto [memory, offset] = pool.take(bytes_of(w, *form));
  auto packed = std::make_shared<const cpu::Packed>(
      *form,
      static_cast<int>(count_of(w)),
      cpu::QuantizedOperands{codes.as<uint32_t>(), s.data(), b.data()},
      memory.data<uint8_t>() + offset);
  auto stand_in = [&, &memory = memory, offset = offset](const mx::array& a) {
    mx::array view = bridge::view(memory, offset, a.shape(), a.dtype());
    view.set_status(mx::array::Status::available);
    return view;
  };
  auto stored = std::make_shared<Stored>(
      Stored{stand_in(w), stand_in(scales), std::nullopt, packed});
  if (form->format.has_biases()) {
    stored->biases = stand_in(biases);
  }
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  std::erase_if(r.memories,
                [](const auto& m) { return m.second.data.expired(); });
  r.memories[memory.data_shared_ptr().get()] = {memory.data_shared_ptr(),
                                                packed};
  r.memory_count = r.memories.size();
  return stored;
}

std::shared_ptr<const cpu::Packed> find(const mx::array& w) {
  Registry& r = registry();
  const void* data = w.data_shared_ptr().get();
  if (r.memory_count == 0 || !data) {
    return nullptr;
  }
  std::lock_guard lock(r.mutex);
  auto found = r.memories.find(data);
  return found == r.memories.end() ? nullptr : found->second.packed;
}

std::optional<Part> part_of(const mx::array& a) {
  Registry& r = registry();
  if (r.node_count == 0) {
    return std::nullopt;
  }
  std::lock_guard lock(r.mutex);
  const Part* found = r.part_of(a);
  return found ? std::optional(*found) : std::nullopt;
}

std::shared_ptr<const Stored> stored(const ops::QuantizedArrays& arrays) {
  Registry& r = registry();
  if (r.node_count == 0) {
    return nullptr;
  }
  std::lock_guard lock(r.mutex);
  const Part* w = r.part_of(arrays.w);
  if (!w || w->part != cpu::PackedPart::kCodes) {
    return nullptr;
  }
  const cpu::Packed* packed = w->stored->packed.get();
  auto is = [&](const mx::array& a, cpu::PackedPart part) {
    const Part* found = r.part_of(a);
    return found && found->part == part &&
           found->stored->packed.get() == packed;
  };
  bool complete =
      arrays.biases.has_value() == packed->form().format.info().stores_biases &&
      is(arrays.scales, cpu::PackedPart::kScales) &&
      (!w->stored->biases || is(*arrays.biases, cpu::PackedPart::kBiases));
  return complete ? w->stored : nullptr;
}

void enter(const mx::Primitive* node, Part part) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  r.nodes.insert_or_assign(reinterpret_cast<std::uintptr_t>(node),
                           std::move(part));
  r.node_count = r.nodes.size();
}

void leave(const mx::Primitive* node) {
  Registry& r = registry();
  std::optional<Part> last;  // destroyed after the lock is released
  std::lock_guard lock(r.mutex);
  auto found = r.nodes.find(reinterpret_cast<std::uintptr_t>(node));
  if (found != r.nodes.end()) {
    last = std::move(found->second);
    r.nodes.erase(found);
  }
  r.node_count = r.nodes.size();
}

}  // namespace nibble::repack

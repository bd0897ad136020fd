#include "csrc/mlx/nodes/step.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <mutex>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "csrc/core/error.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "mlx/allocator.h"

namespace nibble {
namespace {

using Kind = Tape::Input::Kind;
using Tasks = std::vector<std::function<void()>>;

// True for a node of ours, whose task is collected.
bool is_ours(const mx::Primitive& primitive) {
  return std::string_view(primitive.name()).starts_with("Nibble");
}

// Gives the collected tasks to the stream as one, which also keeps `kept`.
void submit(Tasks tasks,
            const mx::Stream& stream,
            const std::vector<mx::array>& outputs,
            std::shared_ptr<const void> kept) {
  cpu_task::dispatch(
      stream, outputs, [tasks = std::move(tasks), kept = std::move(kept)] {
        for (const auto& task : tasks) {
          task();
        }
      });
}

// The number of arrays that are the array `a`. MLX tells only whether it is 1
// and nobody has the memory, not even a task that is done soon.
template <auto Description>
struct Opened {
  friend long references(const mx::array& a) {
    return (a.*Description).use_count();
  }
};
long references(const mx::array& a);
template struct Opened<&mx::array::array_desc_>;

// The steps that have yet to write to some memory, and for each of which MLX
// keeps the memory until its task is done.
class Waiting {
 public:
  // Counts a step until the result is dropped, by its task.
  static std::shared_ptr<void> add(const mx::array& a) {
    auto count = of(a, true);
    ++*count;
    return {nullptr, [count](void*) { --*count; }};
  }

  // True if only `a` and these steps have the memory of `a`. The stream runs
  // tasks in turn, so another step may then write to it.
  static bool alone(const mx::array& a) {
    // In this order: a step that ends in between makes it false.
    long uses = a.data_shared_ptr().use_count();
    auto count = of(a, false);
    return uses - (count ? count->load() : 0) == 1;
  }

 private:
  using Count = std::shared_ptr<std::atomic<long>>;
  struct Entry {
    std::weak_ptr<mx::array::Data> memory;
    Count count;
  };

  static Count of(const mx::array& a, bool make) {
    static std::mutex mutex;
    // Never destroyed: a stream's thread may outlive static objects.
    static auto& entries = *new std::unordered_map<const void*, Entry>;
    static size_t next_sweep = 256;
    std::lock_guard lock(mutex);
    const std::shared_ptr<mx::array::Data>& memory = a.data_shared_ptr();
    auto found = entries.find(memory.get());
    if (found != entries.end() && !found->second.memory.expired()) {
      return found->second.count;
    }
    if (!make) {
      return nullptr;
    }
    if (entries.size() >= next_sweep) {
      std::erase_if(entries,
                    [](const auto& e) { return e.second.memory.expired(); });
      next_sweep = 2 * entries.size() + 256;
    }
    Entry entry{memory, std::make_shared<std::atomic<long>>(0)};
    entries[memory.get()] = entry;
    return entry.count;
  }
};

// True if MLX may write to this memory. Before 0.32.4 it had no other.
template <typename Data>
bool is_writable(const Data& data) {
  if constexpr (requires { data.is_owned(); }) {
    return data.is_owned();
  }
  return true;
}

// `out` = `in` with the same memory, or with a copy of it.
void take_over(const mx::array& in, mx::array& out, const mx::Stream& stream) {
  if (in.flags().row_contiguous && is_writable(*in.data_shared_ptr()) &&
      references(in) == 1 && Waiting::alone(in)) {
    out.copy_shared_buffer(in);
    return;
  }
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu_task::dispatch(stream,
                     {},
                     [from = bridge::RowContiguous(in),
                      to = out.data<std::byte>(),
                      count = out.nbytes()]() mutable {
                       std::memcpy(to, from.data(), count);
                     });
}

// The first `keys` positions of a cache.
mx::array filled(const mx::array& cache, int keys) {
  mx::Shape shape = cache.shape();
  shape[2] = keys;
  mx::array view(std::move(shape), cache.dtype(), nullptr, {});
  mx::array::Flags flags{};
  view.copy_shared_buffer(
      cache, cache.strides(), flags, cache.data_size(), cache.offset());
  return view;
}

// Writes rows [B, heads, L, D] to a row-contiguous cache.
void write(const mx::array& rows,
           mx::array& cache,
           int position,
           const mx::Stream& stream) {
  cpu_task::dispatch(
      stream,
      {},
      [from = bridge::StridedRows(rows),
       to = cache.data<std::byte>(),
       room = int64_t{cache.shape(2)},
       size = cache.itemsize(),
       row = cache.shape(3) * cache.itemsize(),
       position]() mutable {
        const cpu::RowGrid& g = from.grid();
        const auto* data = static_cast<const std::byte*>(g.data);
        for (int64_t b = 0; b < g.shape[0]; ++b) {
          for (int64_t h = 0; h < g.shape[1]; ++h) {
            for (int64_t l = 0; l < g.shape[2]; ++l) {
              int64_t element =
                  b * g.strides[0] + h * g.strides[1] + l * g.strides[2];
              int64_t place = (b * g.shape[1] + h) * room + position + l;
              std::memcpy(to + place * row, data + element * size, row);
            }
          }
        }
      });
}

bool is_same(const mx::array& a, const mx::array& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.data<void>(), b.data<void>(), a.nbytes()) == 0;
}

}  // namespace

bool Tape::is_equivalent(const Tape& other) const {
  auto alike = [](const Node& a, const Node& b) {
    bool primitives =
        a.primitive && b.primitive
            ? std::string_view(a.primitive->name()) == b.primitive->name() &&
                  a.primitive->is_equivalent(*b.primitive)
            : a.primitive == b.primitive && a.writes == b.writes;
    return primitives && a.inputs == b.inputs &&
           a.first_result == b.first_result && a.result_count == b.result_count;
  };
  return stream == other.stream && results == other.results &&
         output == other.output &&
         std::ranges::equal(nodes, other.nodes, alike) &&
         std::ranges::equal(constants, other.constants, is_same);
}

Step::Step(std::shared_ptr<const Tape> tape,
           std::vector<mx::array> parameters,
           int position)
    : Primitive(tape->stream),
      bound_(std::make_shared<const Bound>(
          Bound{tape, std::move(parameters), mx::array(position)})),
      position_(position) {}

void Step::eval_cpu(const std::vector<mx::array>& inputs,
                    std::vector<mx::array>& outputs) {
  // MLX then keeps the memory of the caches for this evaluation.
  bool keeps_caches = &outputs[kX].inputs() == &inputs;
  // Each output has the inputs. More than one reference keeps caches from being
  // written in place.
  for (mx::array& out : outputs) {
    if (&out.inputs() != &inputs) {
      out.inputs().clear();
    }
  }
  const Tape& tape = *bound_->tape;
  auto results = std::make_shared<std::vector<mx::array>>();
  results->reserve(tape.results.size());
  for (size_t i = 0; i < tape.results.size(); ++i) {
    const Tape::Type& type = tape.results[i];
    results->push_back(i == tape.output
                           ? outputs[kX]
                           : mx::array(type.shape, type.dtype, nullptr, {}));
  }

  Tasks tasks;
  {
    std::optional<cpu_task::Collection> collection(std::in_place);
    take_over(inputs[kKeys], outputs[kKeys], stream());
    take_over(inputs[kValues], outputs[kValues], stream());
    mx::array keys = filled(outputs[kKeys], position_ + 1);
    mx::array values = filled(outputs[kValues], position_ + 1);
    auto value_of = [&](const Tape::Input& input) -> const mx::array& {
      switch (input.kind) {
        case Kind::kX:
          return inputs[kX];
        case Kind::kPosition:
          return bound_->position;
        case Kind::kKeys:
          return keys;
        case Kind::kValues:
          return values;
        case Kind::kParameter:
          return bound_->parameters[input.index];
        case Kind::kConstant:
          return tape.constants[input.index];
        case Kind::kResult:
          break;
      }
      return (*results)[input.index];
    };
    for (const Tape::Node& node : tape.nodes) {
      if (!node.primitive) {
        write(value_of(node.inputs[0]),
              outputs[node.writes == Kind::kKeys ? kKeys : kValues],
              position_,
              stream());
        continue;
      }
      std::vector<mx::array> given, made;
      given.reserve(node.inputs.size());
      for (const Tape::Input& input : node.inputs) {
        given.push_back(value_of(input));
      }
      auto first = results->begin() + static_cast<long>(node.first_result);
      made.assign(first, first + static_cast<long>(node.result_count));
      if (!is_ours(*node.primitive)) {
        // MLX's nodes give their tasks to the stream themselves.
        Tasks before = collection->take();
        collection.reset();
        submit(std::move(before), stream(), {}, bound_);
        node.primitive->eval_cpu(given, made);
        collection.emplace();
        continue;
      }
      node.primitive->eval_cpu(given, made);
    }
    tasks = collection->take();
  }
  struct Kept {
    std::shared_ptr<const Bound> bound;
    std::shared_ptr<std::vector<mx::array>> results;
    std::shared_ptr<void> keys, values;
  };
  auto kept = std::make_shared<Kept>(Kept{bound_, std::move(results), {}, {}});
  if (keeps_caches) {
    kept->keys = Waiting::add(outputs[kKeys]);
    kept->values = Waiting::add(outputs[kValues]);
  }
  submit(std::move(tasks), stream(), {outputs[kX]}, std::move(kept));
}

void Step::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  fail(name(), "a graph built for the CPU must be run on it");
}

void Hole::eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  fail(name(), "a value that is not known while a block is recorded");
}

void Hole::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  fail(name(), "a value that is not known while a block is recorded");
}

}  // namespace nibble

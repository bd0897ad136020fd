#include "csrc/mlx/nodes/step.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <string_view>

#include "csrc/core/error.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/nodes/cache_memory.h"
#include "mlx/allocator.h"

namespace nibble {
namespace {

using Arrays = std::vector<mx::array>;
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

// The first `keys` rows of a cache's array.
mx::array seen(const mx::array& cache, int keys) {
  mx::Shape shape = cache.shape();
  shape[2] = keys;
  mx::array view(std::move(shape), cache.dtype(), nullptr, {});
  mx::array::Flags flags{};
  view.copy_shared_buffer(
      cache, cache.strides(), flags, cache.data_size(), cache.offset());
  return view;
}

// Writes [B, heads, 1, D] to a row of each head of a row-contiguous cache.
void write(const mx::array& rows,
           mx::array& cache,
           int row,
           const mx::Stream& stream) {
  cpu_task::dispatch(
      stream,
      {},
      [from = bridge::StridedRows(rows),
       to = cache.data<std::byte>(),
       room = int64_t{cache.shape(2)},
       size = cache.itemsize(),
       width = cache.shape(3) * cache.itemsize(),
       row]() mutable {
        const cpu::RowGrid& g = from.grid();
        const auto* data = static_cast<const std::byte*>(g.data);
        for (int64_t b = 0; b < g.shape[0]; ++b) {
          for (int64_t h = 0; h < g.shape[1]; ++h) {
            int64_t element = b * g.strides[0] + h * g.strides[1];
            int64_t place = (b * g.shape[1] + h) * room + row;
            std::memcpy(to + place * width, data + element * size, width);
          }
        }
      });
}

// `out` = `in` + `by`: numbers of sequences.
void count(const mx::array& in,
           mx::array& out,
           int by,
           const mx::Stream& stream) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu_task::dispatch(
      stream,
      {},
      [from = bridge::RowContiguous(in),
       to = out.data<int32_t>(),
       size = out.size(),
       by]() mutable {
        const auto* numbers = from.as<int32_t>();
        std::transform(
            numbers, numbers + size, to, [by](int32_t n) { return n + by; });
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
            : a.primitive == b.primitive && a.cache == b.cache;
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
           Place place,
           size_t caches,
           std::vector<int> counted)
    : Primitive(tape->stream),
      bound_(std::make_shared<const Bound>(
          Bound{tape, std::move(parameters), mx::array(place.position)})),
      place_(place),
      caches_(caches),
      counted_(std::move(counted)) {}

// One evaluation of a step: gives results memory, and tasks to the stream.
class Step::Evaluation {
 public:
  Evaluation(const Step& step,
             const std::vector<mx::array>& inputs,
             std::vector<mx::array>& outputs)
      : step_(step), tape_(*step.bound_->tape), in_(inputs), out_(outputs) {
    results_->reserve(tape_.results.size());
    for (const Tape::Node& node : tape_.nodes) {
      for (size_t i = 0; i < node.result_count; ++i) {
        add_result(node.primitive);
      }
    }
  }

  void run(bool keeps_caches) {
    begin();
    for (const Tape::Node& node : tape_.nodes) {
      if (node.primitive) {
        compute(node);
      } else {
        write(value(node.inputs[0]),
              out_[1 + node.cache],
              step_.place_.row,
              tape_.stream);
      }
    }
    end(keeps_caches);
  }

 private:
  void begin() {
    seen_.reserve(step_.caches_);
    for (size_t i = 1; i <= step_.caches_; ++i) {
      cache_memory::take_over(in_[i], out_[i], tape_.stream);
      seen_.push_back(seen(out_[i], step_.place_.keys));
    }
    for (size_t i = 0; i < step_.counted_.size(); ++i) {
      size_t at = first_counter() + i;
      count(in_[at], out_[at], step_.counted_[i], tape_.stream);
    }
  }

  // MLX's nodes ask their outputs for the stream.
  void add_result(const std::shared_ptr<mx::Primitive>& primitive) {
    size_t i = results_->size();
    if (i == tape_.output) {
      results_->push_back(out_[0]);
      return;
    }
    auto [shape, dtype] = tape_.results[i];
    std::ranges::replace(shape, Tape::kKeys, step_.place_.keys);
    results_->emplace_back(std::move(shape), dtype, primitive, Arrays{});
  }

  size_t first_counter() const { return 1 + step_.caches_; }

  const mx::array& value(const Tape::Input& input) const {
    switch (input.kind) {
      case Kind::kX:
        return in_[0];
      case Kind::kPosition:
        return step_.counted_.empty() ? step_.bound_->position
                                      : in_[first_counter()];
      case Kind::kMask:
        return in_[first_counter() + step_.counted_.size()];
      case Kind::kCache:
        return seen_[input.index];
      case Kind::kParameter:
        return step_.bound_->parameters[input.index];
      case Kind::kConstant:
        return tape_.constants[input.index];
      case Kind::kResult:
        break;
    }
    return (*results_)[input.index];
  }

  void compute(const Tape::Node& node) {
    Arrays given, made;
    given.reserve(node.inputs.size());
    for (const Tape::Input& input : node.inputs) {
      given.push_back(value(input));
    }
    auto first = results_->begin() + static_cast<long>(node.first_result);
    made.assign(first, first + static_cast<long>(node.result_count));
    if (is_ours(*node.primitive)) {
      node.primitive->eval_cpu(given, made);
      return;
    }
    // MLX's nodes give their tasks to the stream themselves.
    Tasks before = collection_->take();
    collection_.reset();
    submit(std::move(before), tape_.stream, {}, step_.bound_);
    node.primitive->eval_cpu(given, made);
    collection_.emplace();
  }

  void end(bool keeps_caches) {
    struct Kept {
      std::shared_ptr<const Bound> bound;
      std::shared_ptr<Arrays> results;
      std::vector<std::shared_ptr<void>> writers;
    };
    auto kept = std::make_shared<Kept>(Kept{step_.bound_, results_, {}});
    for (size_t i = 1; keeps_caches && i <= step_.caches_; ++i) {
      kept->writers.push_back(cache_memory::add_writer(out_[i]));
    }
    Tasks tasks = collection_->take();
    collection_.reset();
    submit(std::move(tasks), tape_.stream, {out_[0]}, std::move(kept));
  }

  const Step& step_;
  const Tape& tape_;
  const Arrays& in_;
  Arrays& out_;
  std::shared_ptr<Arrays> results_ = std::make_shared<Arrays>();
  Arrays seen_;
  std::optional<cpu_task::Collection> collection_{std::in_place};
};

void Step::eval_cpu(const std::vector<mx::array>& inputs,
                    std::vector<mx::array>& outputs) {
  // MLX then keeps the memory of the caches for this evaluation.
  bool keeps_caches = &outputs[0].inputs() == &inputs;
  // Each output has the inputs. More than one reference keeps caches from being
  // written in place.
  for (mx::array& out : outputs) {
    if (&out.inputs() != &inputs) {
      out.inputs().clear();
    }
  }
  Evaluation(*this, inputs, outputs).run(keeps_caches);
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

void BroadcastView::eval_cpu(const std::vector<mx::array>& inputs,
                             std::vector<mx::array>& outputs) {
  const mx::array& in = inputs[0];
  mx::array& out = outputs[0];
  mx::Strides strides(out.ndim(), 0);
  for (int d = 1; d <= static_cast<int>(in.ndim()); ++d) {
    if (in.shape(-d) == out.shape(-d)) {
      strides[strides.size() - d] = in.strides(-d);
    }
  }
  auto flags = in.flags();
  if (out.size() > in.size()) {
    flags.row_contiguous = flags.col_contiguous = false;
  }
  out.copy_shared_buffer(in, strides, flags, in.data_size());
}

void BroadcastView::eval_gpu(const std::vector<mx::array>&,
                             std::vector<mx::array>&) {
  fail(name(), "a graph built for the CPU must be run on it");
}

}  // namespace nibble

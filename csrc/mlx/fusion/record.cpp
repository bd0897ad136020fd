#include "csrc/mlx/fusion/record.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "csrc/mlx/facts/repack.h"
#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/nodes/attention.h"
#include "csrc/mlx/nodes/step.h"
#include "mlx/ops.h"

namespace nibble::record {
namespace {

using Input = Tape::Input;
using Kind = Input::Kind;

const mx::array& stand_in(const repack::Part& part) {
  switch (part.part) {
    case cpu::PackedPart::kCodes:
      return part.stored->w;
    case cpu::PackedPart::kScales:
      return part.stored->scales;
    case cpu::PackedPart::kBiases:
      break;
  }
  return *part.stored->biases;
}

class Recorder {
 public:
  Recorder(const Run& run, const std::vector<mx::array>& parameters)
      : run_(run), tape_{run.y.primitive().stream(), {}, {}, {}} {
    for (size_t i = 0; i < parameters.size(); ++i) {
      known_.emplace(parameters[i].id(), Input{Kind::kParameter, i});
    }
    known_[run.x.id()] = {Kind::kX};
    known_[run.position.id()] = {Kind::kPosition};
    if (run.mask) {
      known_[run.mask->id()] = {Kind::kMask};
    }
  }

  std::shared_ptr<const Tape> record() {
    auto y = visit(run_.y);
    if (!y || y->kind != Kind::kResult || wrote_.size() != run_.caches.size() ||
        run_.y.shape() != run_.x.shape()) {
      return nullptr;
    }
    tape_.output = y->index;
    return std::make_shared<const Tape>(std::move(tape_));
  }

 private:
  // The value of an array; nullopt if it cannot be recorded.
  std::optional<Input> visit(const mx::array& a) {
    auto found = known_.find(a.id());
    if (found != known_.end()) {
      return found->second;
    }
    if (auto rows = seen_rows(a)) {
      return rows;
    }
    if (graph::is_constant(a)) {
      // Larger arrays might depend on the number of keys.
      if (a.size() != 1 || !a.is_available()) {
        return std::nullopt;
      }
      return constant(a, a);
    }
    bool recordable = a.status() == mx::array::Status::unscheduled &&
                      !a.is_tracer() &&
                      (!a.inputs().empty() || graph::is_pending(a, "Arange")) &&
                      a.primitive().stream() == tape_.stream;
    if (!recordable) {
      return std::nullopt;
    }
    Tape::Node node;
    node.primitive = graph::is_pending(a, "Broadcast")
                         ? std::make_shared<BroadcastView>(tape_.stream)
                         : a.primitive_ptr();
    bool attends =
        std::string_view(node.primitive->name()) == AttentionPrimitive::kName;
    for (size_t i = 0; i < a.inputs().size(); ++i) {
      auto input = attends && i > 0 ? cache(a.inputs()[i]) : std::nullopt;
      if (i == 1 && input) {
        node.primitive = of_all_keys(a.primitive(), a.inputs()[i]);
      } else if (!input) {
        input = visit(a.inputs()[i]);
      }
      if (!input || !node.primitive) {
        return std::nullopt;
      }
      node.inputs.push_back(*input);
    }
    auto is_constant = [](const Input& i) { return i.kind == Kind::kConstant; };
    bool grows = std::ranges::count(a.shape(), run_.keys) > 0;
    if (!grows && a.siblings().empty() &&
        std::ranges::all_of(node.inputs, is_constant)) {
      mx::array value = mx::contiguous(a, false, tape_.stream);
      value.eval();
      return constant(a, value);
    }
    node.first_result = tape_.results.size();
    for (const mx::array& output : a.outputs()) {
      known_[output.id()] = {Kind::kResult, tape_.results.size()};
      mx::Shape shape = output.shape();
      std::ranges::replace(shape, run_.keys, Tape::kKeys);
      tape_.results.push_back({std::move(shape), output.dtype()});
      ++node.result_count;
    }
    tape_.nodes.push_back(std::move(node));
    return known_[a.id()];
  }

  Input constant(const mx::array& a, const mx::array& value) {
    tape_.constants.push_back(value);
    return known_[a.id()] = {Kind::kConstant, tape_.constants.size() - 1};
  }

  // The array of the cache that an input of attention is, once the new token
  // is in it.
  std::optional<Input> cache(const mx::array& a) {
    auto found = std::ranges::find(run_.caches, a.id(), &mx::array::id);
    if (found == run_.caches.end()) {
      return std::nullopt;
    }
    Input made{Kind::kCache, size_t(found - run_.caches.begin())};
    if (wrote_.contains(made.index)) {
      return made;
    }
    // A batch's rotating cache waits for its counters.
    const mx::array& updated =
        graph::is_pending(a, "Depends") ? a.inputs()[0] : a;
    if (!graph::is_pending(updated, "SliceUpdate") ||
        updated.inputs().size() != 2 ||
        !graph::is_pending(updated.inputs()[0], Hole::kName)) {
      return std::nullopt;
    }
    const mx::array& rows = updated.inputs()[1];
    auto [reduce, start, end, steps] =
        static_cast<const mx::SliceUpdate&>(updated.primitive()).state();
    mx::Shape shape = a.shape();
    shape[2] = 1;
    bool one_row = start == mx::Shape{0, 0, run_.row, 0} &&
                   end[2] == run_.row + 1 && rows.shape() == shape &&
                   rows.dtype() == a.dtype();
    auto input = one_row ? visit(rows) : std::nullopt;
    if (!input) {
      return std::nullopt;
    }
    Tape::Node node;
    node.inputs = {*input};
    node.cache = made.index;
    tape_.nodes.push_back(std::move(node));
    wrote_.insert(made.index);
    return made;
  }

  // The rows of an array of the cache that the token sees, as nodes beside
  // attention read them.
  std::optional<Input> seen_rows(const mx::array& a) {
    if (!graph::is_pending(a, "Slice")) {
      return std::nullopt;
    }
    auto [start, end, steps] =
        static_cast<const mx::Slice&>(a.primitive()).state();
    const mx::array& whole = a.inputs()[0];
    mx::Shape shape = whole.shape();
    bool all = shape.size() == 4 && start == mx::Shape(4, 0) &&
               steps == mx::Shape(4, 1);
    if (all) {
      shape[2] = run_.keys;
    }
    return all && end == shape ? cache(whole) : std::nullopt;
  }

  // Attention over all keys that it is given; nullptr unless it reads those
  // that the token sees.
  std::shared_ptr<mx::Primitive> of_all_keys(mx::Primitive& primitive,
                                             const mx::array& cache) {
    auto& attention = static_cast<AttentionPrimitive&>(primitive);
    AttentionOptions options = attention.options();
    int keys = std::exchange(options.keys, 0);
    if ((keys != 0 ? keys : cache.shape(2)) != run_.keys) {
      return nullptr;
    }
    return std::make_shared<AttentionPrimitive>(attention.stream(), options);
  }

  const Run& run_;
  Tape tape_;
  std::unordered_map<std::uintptr_t, Input> known_;
  std::unordered_set<size_t> wrote_;  // arrays of the cache
};

}  // namespace

mx::array hole(const mx::Shape& shape, mx::Dtype dtype, const mx::Stream& s) {
  return mx::array(shape, dtype, std::make_shared<Hole>(s), {});
}

Parameter::Parameter(const mx::array& a)
    : shape_(a.shape()), dtype_(a.dtype()) {
  if (auto part = repack::part_of(a)) {
    form_ = part->stored->packed->form();
  }
}

std::optional<mx::array> Parameter::resolved(const mx::array& now) const {
  if (now.shape() != shape_ || now.dtype() != dtype_) {
    return std::nullopt;
  }
  if (!form_) {
    bool computed = graph::is_constant(now) && now.is_available();
    return computed ? std::optional(now) : std::nullopt;
  }
  auto part = repack::part_of(now);
  bool same = part && part->stored->packed->form() == *form_;
  return same ? std::optional(stand_in(*part)) : std::nullopt;
}

std::shared_ptr<const Tape> tape(const Run& run,
                                 const std::vector<mx::array>& parameters) {
  if (!run.y.has_primitive()) {
    return nullptr;
  }
  fusion::add_residual(run.y);
  return Recorder(run, parameters).record();
}

bool are_equivalent(const Tape& a, const Tape& b) {
  return a.is_equivalent(b);
}

mx::Stream stream_of(const Tape& tape) {
  return tape.stream;
}

mx::array replay(const std::shared_ptr<const Tape>& tape,
                 const mx::array& x,
                 Token& token,
                 std::vector<mx::array> parameters) {
  // x may come from a block whose code ran. Code would have fused its sum.
  fusion::add_residual(x);
  std::vector<mx::array> inputs{x};
  for (const mx::array* cache : token.caches) {
    inputs.push_back(*cache);
  }
  inputs.insert(inputs.end(), token.counters.begin(), token.counters.end());
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (const mx::array& input : inputs) {
    shapes.push_back(input.shape());
    dtypes.push_back(input.dtype());
  }
  dtypes[0] = tape->results[tape->output].dtype;
  if (token.mask) {
    inputs.push_back(*token.mask);
  }
  auto step =
      std::make_shared<Step>(tape,
                             std::move(parameters),
                             Place{token.row, token.keys, token.position},
                             token.caches.size(),
                             token.counted);
  auto outputs = mx::array::make_arrays(
      std::move(shapes), dtypes, step, std::move(inputs));
  auto output = outputs.begin() + 1;
  for (mx::array* cache : token.caches) {
    cache->overwrite_descriptor(*output++);
  }
  token.counters.assign(output, outputs.end());
  return outputs[0];
}

}  // namespace nibble::record

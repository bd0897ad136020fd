#include "csrc/mlx/fusion/record.h"

#include <string_view>
#include <unordered_map>
#include <utility>

#include "csrc/mlx/facts/repack.h"
#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/nodes/attention.h"
#include "csrc/mlx/nodes/step.h"

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
  }

  std::shared_ptr<const Tape> record() {
    auto y = visit(run_.y);
    bool writes = wrote_.contains(run_.new_keys.id()) &&
                  wrote_.contains(run_.new_values.id());
    if (!y || y->kind != Kind::kResult || !writes ||
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
    if (graph::is_constant(a)) {
      // Larger arrays might depend on the number of keys.
      if (a.size() != 1 || !a.is_available()) {
        return std::nullopt;
      }
      tape_.constants.push_back(a);
      return known_[a.id()] = {Kind::kConstant, tape_.constants.size() - 1};
    }
    bool recordable = a.status() == mx::array::Status::unscheduled &&
                      !a.is_tracer() && !a.inputs().empty() &&
                      a.primitive().stream() == tape_.stream;
    if (!recordable) {
      return std::nullopt;
    }
    Tape::Node node;
    node.primitive = a.primitive_ptr();
    bool attends =
        std::string_view(node.primitive->name()) == AttentionPrimitive::kName;
    for (size_t i = 0; i < a.inputs().size(); ++i) {
      auto input = attends && i > 0 ? cache(a.inputs()[i]) : std::nullopt;
      if (input) {
        node.primitive = of_all_keys(*node.primitive);
      } else {
        input = visit(a.inputs()[i]);
      }
      if (!input || !node.primitive) {
        return std::nullopt;
      }
      node.inputs.push_back(*input);
    }
    node.first_result = tape_.results.size();
    for (const mx::array& output : a.outputs()) {
      known_[output.id()] = {Kind::kResult, tape_.results.size()};
      tape_.results.push_back({output.shape(), output.dtype()});
      ++node.result_count;
    }
    tape_.nodes.push_back(std::move(node));
    return known_[a.id()];
  }

  // The cache that an input of attention is, once the new token is in it.
  std::optional<Input> cache(const mx::array& a) {
    bool keys = a.id() == run_.new_keys.id();
    if (!keys && a.id() != run_.new_values.id()) {
      return std::nullopt;
    }
    Kind kind = keys ? Kind::kKeys : Kind::kValues;
    if (wrote_.contains(a.id())) {
      return Input{kind};
    }
    if (!graph::is_pending(a, "SliceUpdate") || a.inputs().size() != 2 ||
        !graph::is_pending(a.inputs()[0], Hole::kName)) {
      return std::nullopt;
    }
    const mx::array& rows = a.inputs()[1];
    auto [reduce, start, end, steps] =
        static_cast<const mx::SliceUpdate&>(a.primitive()).state();
    mx::Shape shape = a.shape();
    shape[2] = 1;
    bool one_position = start[0] == 0 && start[1] == 0 && start[3] == 0 &&
                        end[2] == start[2] + 1 && rows.shape() == shape &&
                        rows.dtype() == a.dtype();
    auto input = one_position ? visit(rows) : std::nullopt;
    if (!input) {
      return std::nullopt;
    }
    Tape::Node node;
    node.inputs = {*input};
    node.writes = kind;
    tape_.nodes.push_back(std::move(node));
    wrote_.emplace(a.id(), end[2]);
    return Input{kind};
  }

  // Attention over all keys that it is given; nullptr unless it reads the
  // filled part of the cache.
  std::shared_ptr<mx::Primitive> of_all_keys(mx::Primitive& primitive) {
    auto& attention = static_cast<AttentionPrimitive&>(primitive);
    AttentionOptions options = attention.options();
    for (const auto& [_, filled] : wrote_) {
      if (options.keys != 0 && options.keys != filled) {
        return nullptr;
      }
    }
    options.keys = 0;
    return std::make_shared<AttentionPrimitive>(attention.stream(), options);
  }

  const Run& run_;
  Tape tape_;
  std::unordered_map<std::uintptr_t, Input> known_;
  std::unordered_map<std::uintptr_t, int> wrote_;  // and the keys in it
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
                 mx::array& keys,
                 mx::array& values,
                 int position,
                 std::vector<mx::array> parameters) {
  // x may come from a block whose code ran. Code would have fused its sum.
  fusion::add_residual(x);
  auto outputs = mx::array::make_arrays(
      {x.shape(), keys.shape(), values.shape()},
      {tape->results[tape->output].dtype, keys.dtype(), values.dtype()},
      std::make_shared<Step>(tape, std::move(parameters), position),
      {x, keys, values});
  keys.overwrite_descriptor(outputs[Step::kKeys]);
  values.overwrite_descriptor(outputs[Step::kValues]);
  return outputs[Step::kX];
}

}  // namespace nibble::record

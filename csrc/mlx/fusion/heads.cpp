#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/nodes/attention.h"
#include "csrc/mlx/nodes/layers.h"
#include "csrc/mlx/nodes/projected_heads.h"
#include "csrc/mlx/nodes/quantized_matmul.h"
#include "mlx/utils.h"

namespace nibble::fusion {

using graph::is_constant;
using graph::is_pending;

namespace {

// A projection in a graph.
struct Found {
  mx::array x;
  mx::array top;  // the output
  Projection projection;
  std::vector<mx::array> others;  // its inputs beside x
};

// Positions of sequences wait for those of the last token.
bool is_constant_or_index(const mx::array& a) {
  return is_constant(a) ||
         (!a.is_tracer() && mx::issubdtype(a.dtype(), mx::integer));
}

// True if `a` is an output of MLX's node that quantizes.
bool is_quantized(const mx::array& a) {
  return a.status() == mx::array::Status::unscheduled && a.has_primitive() &&
         !a.is_tracer() && std::strcmp(a.primitive().name(), "Quantize") == 0;
}

// The product that computes `a`; nullopt unless it is ours and its weights are
// constants.
std::optional<Found> product(const mx::array& a) {
  if (!is_pending(a, QuantizedMatmul::kName) || a.ndim() != 3) {
    return std::nullopt;
  }
  const auto& primitive = static_cast<const QuantizedMatmul&>(a.primitive());
  const std::vector<mx::array>& inputs = a.inputs();
  bool simple = primitive.transpose() && !primitive.epilogue().residual &&
                inputs[1].ndim() == 2 &&
                std::all_of(inputs.begin() + 1, inputs.end(), is_constant);
  if (!simple) {
    return std::nullopt;
  }
  Projection projection{.format = primitive.format(),
                        .options = primitive.options(),
                        .epilogue = primitive.epilogue()};
  return Found{inputs[0], a, projection, {inputs.begin() + 1, inputs.end()}};
}

// The projection that computes the heads `a`; nullopt unless its steps come in
// the order of ProjectedHeads.
std::optional<Found> whole_heads(const mx::array& a) {
  if (a.ndim() != 4) {
    return std::nullopt;
  }
  const mx::array* at = &a;
  Projection wanted;
  std::vector<mx::array> others;
  auto take_others = [&](const mx::array& node) {
    const auto& inputs = node.inputs();
    others.insert(others.begin(), inputs.begin() + 1, inputs.end());
    return std::all_of(inputs.begin() + 1, inputs.end(), is_constant_or_index);
  };
  auto take_norm = [&] {
    if (wanted.norm_eps || !is_pending(*at, RmsNormPrimitive::kName)) {
      return true;
    }
    wanted.norm_eps =
        static_cast<const RmsNormPrimitive&>(at->primitive()).options();
    wanted.has_norm_weight = at->inputs().size() > 1;
    bool fits = take_others(*at) && at->dtype() == a.dtype();
    at = &at->inputs()[0];
    return fits;
  };
  if (is_pending(*at, RopePrimitive::kName)) {
    wanted.rope = static_cast<const RopePrimitive&>(at->primitive()).options();
    if (!take_others(*at)) {
      return std::nullopt;
    }
    at = &at->inputs()[0];
  }
  if (!take_norm() || !is_pending(*at, "Transpose") ||
      static_cast<const mx::Transpose&>(at->primitive()).state() !=
          std::vector<int>{0, 2, 1, 3}) {
    return std::nullopt;
  }
  at = &at->inputs()[0];
  if (!take_norm() || !is_pending(*at, "Reshape")) {
    return std::nullopt;
  }
  int B = a.shape(0), H = a.shape(1), L = a.shape(2), D = a.shape(3);
  auto found = product(at->inputs()[0]);
  if (!found || found->top.shape() != mx::Shape{B, L, H * D} ||
      found->top.dtype() != a.dtype()) {
    return std::nullopt;
  }
  wanted.format = found->projection.format;
  wanted.options = found->projection.options;
  wanted.epilogue = found->projection.epilogue;
  wanted.heads = H;
  found->projection = wanted;
  found->top = a;
  found->others.insert(found->others.end(), others.begin(), others.end());
  return found;
}

// The projection whose heads a cache stores, in the cache's type; the heads
// themselves are float32.
std::optional<Found> stored_heads(const mx::array& a) {
  if (!is_pending(a, "AsType") || !bridge::to_dtype(a.dtype()) ||
      a.inputs()[0].dtype() != mx::float32) {
    return std::nullopt;
  }
  auto found = whole_heads(a.inputs()[0]);
  if (found) {
    found->top = a;
  }
  return found;
}

std::optional<Found> projection(const mx::array& heads) {
  const mx::array* at = &heads;
  if (is_pending(*at, "Slice")) {  // the filled part of the cache
    at = &at->inputs()[0];
  }
  if (is_pending(*at, "SliceUpdate")) {
    at = &at->inputs()[1];
  }
  if (is_quantized(*at)) {
    at = &at->inputs()[0];
  }
  if (auto found = stored_heads(*at)) {
    return found;
  }
  if (auto found = whole_heads(*at)) {
    return found;
  }
  if (is_pending(*at, "AsType")) {
    at = &at->inputs()[0];
  }
  auto is_step = [](const mx::array& node) {
    for (const char* name : {RopePrimitive::kName,
                             RmsNormPrimitive::kName,
                             "Transpose",
                             "Reshape"}) {
      if (is_pending(node, name)) {
        return true;
      }
    }
    return false;
  };
  while (is_step(*at)) {
    at = &at->inputs()[0];
  }
  return product(*at);
}

}  // namespace

void join_heads(const mx::array& q, const mx::array& k, const mx::array& v) {
  std::vector<Found> found;
  for (const mx::array& heads : {q, k, v}) {
    auto here = projection(heads);
    if (!here) {
      return;
    }
    found.push_back(*std::move(here));
  }
  const mx::Stream& stream = found[0].top.primitive().stream();
  std::vector<mx::array> outputs, inputs = {found[0].x};
  std::vector<Projection> projections;
  for (Found& f : found) {
    // Keys and values of one matrix would be computed twice.
    for (size_t first = 1; first < inputs.size(); ++first) {
      if (inputs[first].id() == f.others[0].id()) {
        return;
      }
    }
    if (f.x.id() != inputs[0].id() || f.top.primitive().stream() != stream) {
      return;
    }
    outputs.push_back(f.top);
    projections.push_back(f.projection);
    inputs.insert(inputs.end(), f.others.begin(), f.others.end());
  }
  for (size_t i = 1; i < inputs.size(); ++i) {
    if (!graph::is_independent(inputs[i], outputs)) {
      return;
    }
  }
  graph::become(
      outputs,
      std::make_shared<ProjectedHeads>(stream, std::move(projections)),
      inputs);
}

void flatten_heads(const mx::array& x) {
  if (!is_pending(x, "Reshape") || x.ndim() != 3) {
    return;
  }
  const mx::array& rows = x.inputs()[0];
  if (!is_pending(rows, "Transpose") ||
      static_cast<const mx::Transpose&>(rows.primitive()).state() !=
          std::vector<int>{0, 2, 1, 3}) {
    return;
  }
  const mx::array& heads = rows.inputs()[0];
  if (!is_pending(heads, AttentionPrimitive::kName) ||
      x.shape(-1) != heads.shape(1) * heads.shape(3)) {
    return;
  }
  auto& attention = static_cast<AttentionPrimitive&>(heads.primitive());
  AttentionOptions options = attention.options();
  options.flat = true;
  graph::become(
      {x},
      std::make_shared<AttentionPrimitive>(attention.stream(), options),
      std::vector<mx::array>(heads.inputs()));
}

}  // namespace nibble::fusion

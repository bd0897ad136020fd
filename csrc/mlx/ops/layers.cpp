// The layers between the products.
#include "csrc/mlx/nodes/layers.h"

#include <memory>
#include <optional>
#include <vector>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/fusion/fusion.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace nibble::fast {

using bridge::to_dtype;

namespace {

// True if these axes, or all, are the last axis and others of size 1.
bool only_the_last(const mx::array& a,
                   const std::optional<std::vector<int>>& axes) {
  int n = static_cast<int>(a.ndim());
  if (n == 0 || a.size() == 0) {
    return false;
  }
  if (!axes) {
    return static_cast<size_t>(a.shape(-1)) == a.size();
  }
  return axes->size() == 1 && (axes->front() == -1 || axes->front() == n - 1);
}

}  // namespace

mx::array rms_norm(const mx::array& x,
                   const std::optional<mx::array>& weight,
                   float eps,
                   mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  mx::Dtype dtype = weight ? mx::result_type(x, *weight) : x.dtype();
  bool fits =
      x.ndim() >= 1 && x.size() > 0 &&
      (!weight || (weight->ndim() == 1 && weight->shape(0) == x.shape(-1)));
  bool ours = stream.device == mx::Device::cpu && fits && to_dtype(x.dtype()) &&
              (!weight || to_dtype(weight->dtype()));
  if (!ours) {
    return mx::fast::rms_norm(x, weight, eps, s);
  }
  if (auto normed = fusion::residual_norm(x, weight, eps, stream)) {
    return *normed;
  }
  std::vector<mx::array> inputs = {x};
  if (weight) {
    inputs.push_back(*weight);
  }
  return mx::array(x.shape(),
                   dtype,
                   std::make_shared<RmsNormPrimitive>(stream, eps),
                   std::move(inputs));
}

mx::array swiglu(const mx::array& gate,
                 const mx::array& up,
                 mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  bool alike = gate.shape() == up.shape() && gate.dtype() == up.dtype();
  if (stream.device == mx::Device::cpu && alike && gate.size() > 0) {
    if (auto y = fusion::gated_products(gate, up, stream)) {
      return *y;
    }
  }
  if (auto y = activation({cpu::Activation::kSilu}, gate, up, stream)) {
    return *y;
  }
  return mx::multiply(
      mx::multiply(gate, mx::sigmoid(gate, stream), stream), up, stream);
}

mx::array rope(const mx::array& x,
               int dims,
               bool traditional,
               std::optional<float> base,
               float scale,
               const std::variant<int, mx::array>& offset,
               const std::optional<mx::array>& freqs,
               mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  const mx::array* offsets = std::get_if<mx::array>(&offset);
  bool offsets_fit =
      !offsets ||
      (mx::issubdtype(offsets->dtype(), mx::integer) &&
       (offsets->ndim() == 0 ||
        (offsets->ndim() == 1 && x.ndim() >= 1 &&
         (offsets->shape(0) == 1 || offsets->shape(0) == x.shape(0)))));
  bool freqs_fit =
      !freqs || (freqs->ndim() == 1 && freqs->shape(0) == dims / 2 &&
                 mx::issubdtype(freqs->dtype(), mx::floating));
  bool fits = x.ndim() >= 3 && x.size() > 0 && dims > 0 && dims % 2 == 0 &&
              dims <= x.shape(-1) && base.has_value() != freqs.has_value() &&
              offsets_fit && freqs_fit;
  bool ours = stream.device == mx::Device::cpu && fits && to_dtype(x.dtype());
  if (!ours) {
    return offsets ? mx::fast::rope(
                         x, dims, traditional, base, scale, *offsets, freqs, s)
                   : mx::fast::rope(x,
                                    dims,
                                    traditional,
                                    base,
                                    scale,
                                    std::get<int>(offset),
                                    freqs,
                                    s);
  }
  std::vector<mx::array> inputs = {x};
  if (offsets) {
    inputs.push_back(mx::astype(*offsets, mx::int32, stream));
  }
  if (freqs) {
    inputs.push_back(mx::astype(*freqs, mx::float32, stream));
  }
  RopeOptions options{dims,
                      traditional,
                      base.value_or(0),
                      scale,
                      offsets ? 0 : std::get<int>(offset),
                      offsets != nullptr,
                      freqs.has_value()};
  return mx::array(x.shape(),
                   x.dtype(),
                   std::make_shared<RopePrimitive>(stream, options),
                   std::move(inputs));
}

namespace {

// A node that reduces the last axis of `a`, which is kept or dropped.
template <typename Node>
mx::array reduced(const mx::array& a,
                  mx::Dtype dtype,
                  bool keepdims,
                  bool all,
                  const mx::Stream& stream) {
  auto primitive = std::make_shared<Node>(stream);
  mx::Shape shape = primitive->output_shapes({a})[0];
  mx::array y(std::move(shape), dtype, std::move(primitive), {a});
  if (keepdims) {
    return y;
  }
  return all ? mx::squeeze(y, stream) : mx::squeeze(y, -1, stream);
}

}  // namespace

mx::array logsumexp(const mx::array& a,
                    const std::optional<std::vector<int>>& axes,
                    bool keepdims,
                    mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  bool ours = stream.device == mx::Device::cpu && to_dtype(a.dtype()) &&
              only_the_last(a, axes);
  if (!ours) {
    return axes ? mx::logsumexp(a, *axes, keepdims, stream)
                : mx::logsumexp(a, keepdims, stream);
  }
  return reduced<LogSumExpPrimitive>(a, a.dtype(), keepdims, !axes, stream);
}

mx::array argmax(const mx::array& a,
                 std::optional<int> axis,
                 bool keepdims,
                 mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  std::optional<std::vector<int>> axes;
  if (axis) {
    axes = {*axis};
  }
  bool ours = stream.device == mx::Device::cpu && to_dtype(a.dtype()) &&
              only_the_last(a, axes);
  if (!ours) {
    return axis ? mx::argmax(a, *axis, keepdims, stream)
                : mx::argmax(a, keepdims, stream);
  }
  return reduced<ArgMaxPrimitive>(a, mx::uint32, keepdims, !axis, stream);
}

}  // namespace nibble::fast

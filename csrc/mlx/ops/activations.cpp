// Activations, layer normalization, depthwise convolution and dense products.
#include <memory>
#include <optional>
#include <vector>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/nodes/activation.h"
#include "csrc/mlx/nodes/dense_matmul.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace nibble::fast {

using bridge::to_dtype;

mx::array layer_norm(const mx::array& x,
                     const std::optional<mx::array>& weight,
                     const std::optional<mx::array>& bias,
                     float eps,
                     mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  bool ours = stream.device == mx::Device::cpu && x.ndim() >= 1 &&
              x.size() > 0 && to_dtype(x.dtype());
  mx::Dtype dtype = x.dtype();
  std::vector<mx::array> inputs = {x};
  for (const auto* vector : {&weight, &bias}) {
    if (*vector) {
      const mx::array& v = **vector;
      ours = ours && v.ndim() == 1 && v.shape(0) == x.shape(-1) &&
             to_dtype(v.dtype());
      dtype = mx::promote_types(dtype, v.dtype());
      inputs.push_back(v);
    }
  }
  if (!ours) {
    return mx::fast::layer_norm(x, weight, bias, eps, s);
  }
  LayerNormOptions options{eps, weight.has_value(), bias.has_value()};
  return mx::array(x.shape(),
                   dtype,
                   std::make_shared<LayerNormPrimitive>(stream, options),
                   std::move(inputs));
}

std::optional<mx::array> activation(const cpu::ActivationOptions& options,
                                    const mx::array& x,
                                    const std::optional<mx::array>& up,
                                    mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  bool fits = !up || (up->shape() == x.shape() && up->dtype() == x.dtype());
  bool ours = stream.device == mx::Device::cpu && fits && x.size() > 0 &&
              to_dtype(x.dtype());
  if (!ours) {
    return std::nullopt;
  }
  bool of_convolution = !up && options.kind == cpu::Activation::kSilu &&
                        graph::is_pending(x, ConvolutionPrimitive::kName);
  if (of_convolution) {
    return mx::array(x.shape(),
                     x.dtype(),
                     std::make_shared<ConvolutionPrimitive>(
                         stream, ConvolutionOptions{.silu = true}),
                     x.inputs());
  }
  std::vector<mx::array> inputs = {x};
  if (up) {
    inputs.push_back(*up);
  }
  return mx::array(x.shape(),
                   x.dtype(),
                   std::make_shared<ActivationPrimitive>(stream, options),
                   std::move(inputs));
}

mx::array conv1d(const mx::array& x,
                 const mx::array& w,
                 int stride,
                 int padding,
                 int dilation,
                 int groups,
                 mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  bool depthwise = x.ndim() == 3 && w.ndim() == 3 && w.shape(2) == 1 &&
                   w.shape(0) == groups && x.shape(2) == groups;
  bool ours = stream.device == mx::Device::cpu && depthwise && stride == 1 &&
              padding == 0 && dilation == 1 && x.size() > 0 &&
              x.shape(1) >= w.shape(1) && w.size() > 0 && to_dtype(x.dtype()) &&
              to_dtype(w.dtype()) &&
              mx::promote_types(x.dtype(), w.dtype()) == x.dtype();
  if (!ours) {
    return mx::conv1d(x, w, stride, padding, dilation, groups, s);
  }
  auto primitive =
      std::make_shared<ConvolutionPrimitive>(stream, ConvolutionOptions{});
  mx::Shape shape = primitive->output_shapes({x, w})[0];
  return mx::array(std::move(shape), x.dtype(), std::move(primitive), {x, w});
}

mx::array linear(const mx::array& x,
                 const mx::array& w,
                 const std::optional<mx::array>& bias,
                 mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  bool fits = x.ndim() >= 1 && w.ndim() == 2 && x.shape(-1) == w.shape(1) &&
              x.size() > 0 && w.size() > 0 && to_dtype(x.dtype()) &&
              to_dtype(w.dtype()) &&
              (!bias || (bias->ndim() == 1 && bias->shape(0) == w.shape(0)));
  mx::Dtype dtype = mx::promote_types(x.dtype(), w.dtype());
  fits = fits && (!bias || mx::promote_types(dtype, bias->dtype()) == dtype);
  if (stream.device != mx::Device::cpu || !fits) {
    mx::array transposed = mx::transpose(w, s);
    return bias ? mx::addmm(*bias, x, transposed, 1.0f, 1.0f, s)
                : mx::matmul(x, transposed, s);
  }
  std::vector<mx::array> inputs = {mx::astype(x, dtype, stream), w};
  if (bias) {
    inputs.push_back(mx::astype(*bias, dtype, stream));
  }
  auto primitive = std::make_shared<DenseMatmulPrimitive>(stream);
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  return mx::array(
      std::move(shape), dtype, std::move(primitive), std::move(inputs));
}

}  // namespace nibble::fast

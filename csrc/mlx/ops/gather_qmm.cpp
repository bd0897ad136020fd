#include "csrc/mlx/nodes/gather_qmm.h"

#include <memory>
#include <optional>

#include "csrc/core/error.h"
#include "csrc/mlx/facts/decision.h"
#include "csrc/mlx/nodes/group_gradient.h"
#include "csrc/mlx/nodes/unpack.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/steps.h"
#include "csrc/mlx/ops/validate.h"
#include "mlx/ops.h"

namespace nibble::ops {
namespace {

constexpr const char* kOp = "gather_qmm";
using enum GatherQmm::Input;

// A global scale is the largest magnitude of a matrix: that of E2M1, 6, times
// that of E4M3, 448.
constexpr float kLargestOfNvfp4 = 6 * 448;

// True if our CPU kernels compute the product of matrices that have a global
// scale each; MLX's do on a GPU only.
bool scales_globally(const QuantizedArrays& matrix,
                     const QuantArgs& args,
                     const mx::Stream& stream) {
  const ModeInfo* mode = find_mode(args.mode);
  return matrix.global_scale && mode && mode->mode == Mode::kNvfp4 &&
         stream.device == mx::Device::cpu;
}

// The product without global scales, in float32, then times those of the
// matrices that are chosen.
mx::array scaled(const mx::array& x,
                 const QuantizedArrays& matrix,
                 const GatherIndices& indices,
                 bool transpose,
                 const QuantArgs& args,
                 const MatmulOptions& options,
                 const mx::Stream& stream) {
  const mx::array& scale = *matrix.global_scale;
  size_t count = matrix.w.size() / (matrix.w.shape(-1) * matrix.w.shape(-2));
  require(
      scale.dtype() == mx::float32 &&
          (scale.size() == 1 || scale.size() == count),
      kOp,
      "global_scale must have one float32 for each matrix but its shape is ",
      text(scale.shape()),
      " and its dtype is ",
      scale.dtype());
  QuantizedArrays plain{matrix.w, matrix.scales, matrix.biases};
  mx::array y = gather_qmm(mx::astype(x, mx::float32, stream),
                           plain,
                           indices,
                           transpose,
                           args,
                           options,
                           stream);
  mx::array each = mx::divide(
      mx::broadcast_to(
          mx::flatten(scale, stream), {static_cast<int>(count)}, stream),
      mx::array(kLargestOfNvfp4),
      stream);
  auto [lhs, rhs] = normalise(kOp, indices, x, matrix.w, stream);
  mx::array chosen =
      mx::expand_dims(mx::take(each, rhs, stream), {-2, -1}, stream);
  return mx::astype(mx::multiply(y, chosen, stream), x.dtype(), stream);
}

}  // namespace

mx::array gather_qmm(const mx::array& x,
                     const QuantizedArrays& matrix,
                     const GatherIndices& indices,
                     bool transpose,
                     const QuantArgs& args,
                     const MatmulOptions& options,
                     mx::StreamOrDevice s) {
  if (!indices.any() && !matrix.global_scale) {
    return quantized_matmul(x, matrix, transpose, args, options, {}, s);
  }
  mx::Stream stream = mx::to_stream(s);
  if (scales_globally(matrix, args, stream) && matrix.w.ndim() >= 2 &&
      matrix.w.size() > 0) {
    return scaled(x, matrix, indices, transpose, args, options, stream);
  }
  auto by_mlx = [&](const mx::array& x, const QuantizedArrays& given) {
    QuantizedArrays q = whole(given, stream);
    return mx::gather_qmm(x,
                          q.w,
                          q.scales,
                          q.biases,
                          indices.lhs,
                          indices.rhs,
                          transpose,
                          args.group_size,
                          args.bits,
                          args.mode,
                          q.global_scale,
                          indices.sorted,
                          stream);
  };
  auto request = normalise({.op = kOp,
                            .stream = stream,
                            .args = args,
                            .matrix = matrix,
                            .x = &x,
                            .transpose = transpose,
                            .gathered = true,
                            .options = &options});
  if (!request) {
    return computable(
        by_mlx(x, repack::own_arrays(matrix)), x, matrix.w, stream);
  }
  auto& [format, dtype, inputs] = *request;
  auto [lhs, rhs] = normalise(kOp, indices, x, matrix.w, stream);
  inputs.insert(inputs.end(), {lhs, rhs});
  auto node = std::make_shared<GatherQmm>(stream,
                                          format,
                                          transpose,
                                          indices.sorted,
                                          !indices.lhs.has_value(),
                                          options);
  mx::Shape shape = node->output_shapes(inputs)[0];
  if (lhs.size() == 0 || x.size() == 0 || matrix.w.shape(-2) == 0) {
    return mx::zeros(shape, dtype, stream);
  }
  require(matrix.w.size() > 0,
          kOp,
          "w must have a matrix to choose but its shape is ",
          text(matrix.w.shape()));
  bool traced = inputs[kX].is_tracer() || lhs.is_tracer() || rhs.is_tracer();
  GatherProblem problem = node->problem(inputs);
  if (!decision::ours(problem, options, traced, stream.device)) {
    auto q = QuantizedArrays::of(
        format, inputs[kW], inputs[kScales], inputs[kBiases]);
    bool plain =
        !traced && !inputs[kScales].is_tracer() && !inputs[kBiases].is_tracer();
    if (decision::dense(problem, stream.device, plain)) {
      mx::Dtype own = dense_dtype(q, dtype);
      mx::array w = rounded(q, transpose, args, own, stream);
      // If no indices choose matrices of x, MLX multiplies all rows of an
      // expert together. It cannot know that if it is given those that we made.
      auto left = indices.lhs ? std::optional(even(lhs, stream)) : std::nullopt;
      mx::array y =
          mx::gather_mm(even(mx::astype(inputs[kX], own, stream), stream),
                        w,
                        left,
                        even(rhs, stream),
                        indices.sorted,
                        stream);
      return mx::astype(y, dtype, stream);
    }
    mx::array y = mx::astype(by_mlx(inputs[kX], q), dtype, stream);
    return trains_groups(inputs, format) &&
                   decision::gradient_is_ours(problem, stream.device)
               ? with_gradients_of(node, inputs, y)
               : y;
  }
  return build(std::move(node), std::move(inputs), dtype);
}

}  // namespace nibble::ops

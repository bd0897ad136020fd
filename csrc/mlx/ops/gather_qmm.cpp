#include "csrc/mlx/nodes/gather_qmm.h"

#include <memory>

#include "csrc/core/error.h"
#include "csrc/mlx/facts/decision.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/steps.h"
#include "csrc/mlx/ops/validate.h"
#include "mlx/ops.h"

namespace nibble::ops {
namespace {

constexpr const char* kOp = "gather_qmm";
using enum GatherQmm::Input;

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
  auto by_mlx = [&](const mx::array& x, const QuantizedArrays& q) {
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
                            .matrices = {&matrix},
                            .x = &x,
                            .transpose = transpose,
                            .gathered = true,
                            .options = &options});
  if (!request) {
    return computable(by_mlx(x, matrix), x, matrix.w, stream);
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
    if (decision::dense(problem, stream.device)) {
      mx::array w = rounded(q, transpose, args, dtype, stream);
      return mx::gather_mm(
          inputs[kX], w, indices.lhs, indices.rhs, indices.sorted, stream);
    }
    return mx::astype(by_mlx(inputs[kX], q), dtype, stream);
  }
  return build(std::move(node), std::move(inputs), dtype);
}

}  // namespace nibble::ops

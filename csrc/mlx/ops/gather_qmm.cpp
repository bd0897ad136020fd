// gather_qmm, as mlx::core has it.
#include "csrc/mlx/nodes/gather_qmm.h"

#include <cstdint>
#include <limits>
#include <memory>

#include "csrc/core/error.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/validate.h"
#include "mlx/ops.h"

namespace nibble::ops {
namespace {

constexpr const char* kGather = "gather_qmm";

}  // namespace

std::pair<mx::array, mx::array> gather_indices(
    const char* op,
    const mx::array& x,
    const mx::array& w,
    const std::optional<mx::array>& lhs,
    const std::optional<mx::array>& rhs,
    const mx::Stream& stream) {
  // Without indices, each matrix in turn.
  auto given = [&](const std::optional<mx::array>& indices,
                   const mx::array& of) {
    if (indices) {
      require(mx::issubdtype(indices->dtype(), mx::integer),
              op,
              "indices must be integers but their dtype is ",
              text(indices->dtype()));
      return mx::astype(*indices, mx::uint32, stream);
    }
    mx::Shape shape = bridge::batch_shape(of.shape());
    int64_t count = 1;
    for (int d : shape) {
      count *= d;
      require(
          count <= std::numeric_limits<int>::max(),
          op,
          "fewer than 2**31 matrices are required without indices but got the "
          "shape ",
          text(of.shape()));
    }
    return mx::reshape(
        mx::arange(0, static_cast<int>(count), mx::uint32, stream),
        shape,
        stream);
  };
  mx::array left = given(lhs, x), right = given(rhs, w);
  mx::Shape shape = mx::broadcast_shapes(left.shape(), right.shape());
  return {mx::broadcast_to(left, shape, stream),
          mx::broadcast_to(right, shape, stream)};
}

mx::array gather_qmm(const mx::array& x_,
                     const mx::array& w,
                     const mx::array& scales_,
                     const std::optional<mx::array>& biases_,
                     const std::optional<mx::array>& lhs_indices,
                     const std::optional<mx::array>& rhs_indices,
                     bool transpose,
                     std::optional<int> group_size,
                     std::optional<int> bits,
                     const std::string& mode,
                     const std::optional<mx::array>& global_scale,
                     bool sorted_indices,
                     const MatmulOptions& options,
                     mx::StreamOrDevice s) {
  QuantFormat format = recognised(
      {bits.value_or(4), group_size.value_or(64)}, scales_, biases_, options);
  check_format(kGather, format);
  mx::Stream stream = mx::to_stream(s);
  auto theirs = [&](const mx::array& x,
                    const mx::array& scales,
                    const std::optional<mx::array>& biases) {
    return computable(mx::gather_qmm(x,
                                     w,
                                     scales,
                                     biases,
                                     lhs_indices,
                                     rhs_indices,
                                     transpose,
                                     group_size,
                                     bits,
                                     mode,
                                     global_scale,
                                     sorted_indices,
                                     stream),
                      x,
                      w,
                      stream);
  };
  if (mode != "affine" || !supported(format) || global_scale) {
    return theirs(x_, scales_, biases_);
  }
  if (!lhs_indices && !rhs_indices) {
    return quantized_matmul(x_,
                            w,
                            scales_,
                            biases_,
                            transpose,
                            group_size,
                            bits,
                            mode,
                            options,
                            {},
                            stream);
  }
  check_weights(kGather, w, scales_, biases_, format);
  require(x_.ndim() >= 2,
          kGather,
          "x must have two or more dimensions but its shape is ",
          text(x_.shape()));
  int K = scales_.shape(-1) * format.group_size;
  int N = w.shape(-2);
  check_activations(kGather, x_, w, transpose ? K : N, transpose);
  mx::Dtype dtype = result_dtype(x_, scales_);
  mx::Dtype scale_dtype = mx::result_type(scales_, *biases_);
  if (!bridge::to_dtype(dtype) || !bridge::to_dtype(scale_dtype)) {
    return theirs(x_, scales_, biases_);
  }
  auto [lhs, rhs] =
      gather_indices(kGather, x_, w, lhs_indices, rhs_indices, stream);
  mx::Shape shape = lhs.shape();
  shape.push_back(x_.shape(-2));
  shape.push_back(transpose ? N : K);
  mx::array x = mx::astype(x_, dtype, stream);
  if (lhs.size() == 0 || x.size() == 0 || N == 0) {
    return mx::zeros(shape, dtype, stream);
  }
  require(w.size() > 0,
          kGather,
          "w must have a matrix to choose but its shape is ",
          text(w.shape()));
  mx::array scales = mx::astype(scales_, scale_dtype, stream);
  mx::array biases = mx::astype(*biases_, scale_dtype, stream);
  GatherProblem problem = bridge::gather_problem(x,
                                                 w,
                                                 scales,
                                                 lhs,
                                                 format,
                                                 transpose,
                                                 sorted_indices,
                                                 options.batch_invariant);
  bool traced = x.is_tracer() || lhs.is_tracer() || rhs.is_tracer();
  if (!supported_on(problem, traced, stream)) {
    return mx::astype(theirs(x, scales, biases), dtype, stream);
  }
  return mx::array(shape,
                   dtype,
                   std::make_shared<GatherQmm>(stream,
                                               format,
                                               transpose,
                                               sorted_indices,
                                               !lhs_indices.has_value(),
                                               options),
                   contiguous({x, w, scales, biases, lhs, rhs}, stream));
}

}  // namespace nibble::ops

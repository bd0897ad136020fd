#include "csrc/mlx/ops.h"

#include <memory>
#include <sstream>

#include "csrc/core/error.h"
#include "csrc/core/planner.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/thread_pool.h"
#include "csrc/metal/encoder.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/heads.h"
#include "csrc/mlx/primitives.h"
#include "csrc/mlx/self_check.h"
#include "mlx/ops.h"

namespace nibble::ops {
namespace {

constexpr const char* kMatmul = "quantized_matmul";
constexpr const char* kDequantize = "dequantize";

std::string text(const mx::Shape& shape) {
  std::ostringstream out;
  out << '(';
  for (size_t i = 0; i < shape.size(); ++i) {
    out << (i ? "," : "") << shape[i];
  }
  out << (shape.size() == 1 ? ",)" : ")");
  return out.str();
}

std::string text(mx::Dtype dtype) {
  std::ostringstream out;
  out << dtype;
  return out.str();
}

// The rules that w, scales and biases of an affine matrix obey.
void check_weights(const char* op,
                   const mx::array& w,
                   const mx::array& scales,
                   const std::optional<mx::array>& biases,
                   const QuantFormat& format) {
  require(w.dtype() == mx::uint32,
          op,
          "w must be packed in uint32 but its dtype is ",
          text(w.dtype()));
  require(biases.has_value(), op, "mode 'affine' needs biases but got none");
  require(w.ndim() >= 2,
          op,
          "w must have two or more dimensions but its shape is ",
          text(w.shape()));
  require(scales.shape() == biases->shape(),
          op,
          "scales and biases must have the same shape but are ",
          text(scales.shape()),
          " and ",
          text(biases->shape()));
  require(mx::issubdtype(scales.dtype(), mx::floating) &&
              mx::issubdtype(biases->dtype(), mx::floating),
          op,
          "scales and biases must be floating point but are ",
          text(scales.dtype()),
          " and ",
          text(biases->dtype()));
  mx::Shape expected = w.shape();
  int64_t K = int64_t{w.shape(-1)} * 32 / format.bits;
  expected.back() = static_cast<int>(K / format.group_size);
  require(scales.shape() == expected && K % format.group_size == 0,
          op,
          "scales of shape ",
          text(expected),
          " are required for w of shape ",
          text(w.shape()),
          " with ",
          format.bits,
          " bits and groups of ",
          format.group_size,
          " but scales have the shape ",
          text(scales.shape()));
}

// On a GPU, kernels take rows as they lie in memory. An array that is already
// there and known to be contiguous needs no node in the graph.
mx::array contiguous(const mx::array& a, const mx::Stream& stream) {
  if (stream.device == mx::Device::cpu ||
      (!a.is_tracer() && a.is_available() && a.flags().row_contiguous)) {
    return a;
  }
  return mx::contiguous(a, false, stream);
}

// True if our kernels compute this on the stream's device, and are trusted
// there.
template <typename Problem>
bool held_on(const Problem& problem, const mx::Stream& stream) {
  if (stream.device == mx::Device::cpu) {
    return true;
  }
  if (!metal::is_available()) {
    return false;
  }
  auto launches = plan(problem, metal::device_profile(stream.device));
  return launches.has_value() && self_check::trusted(*launches);
}

// x against w [batch..., N, K'], with x's batch given numpy's broadcasting.
struct Aligned {
  mx::array x, w, scales, biases;
};

Aligned align_batches(Aligned a, const mx::Stream& stream) {
  if (a.w.ndim() == 2) {
    return a;
  }
  if (a.x.ndim() == 1) {
    a.x = mx::expand_dims(a.x, 0, stream);
  }
  mx::Shape wanted = bridge::batch_shape(a.w.shape());
  mx::Shape batch =
      mx::broadcast_shapes(bridge::batch_shape(a.x.shape()), wanted);
  auto broadcast = [&](const mx::array& v) {
    mx::Shape shape = batch;
    shape.push_back(v.shape(-2));
    shape.push_back(v.shape(-1));
    return mx::broadcast_to(v, shape, stream);
  };
  a.x = broadcast(a.x);
  if (!bridge::match_batch(batch, wanted)) {
    a.w = broadcast(a.w);
    a.scales = broadcast(a.scales);
    a.biases = broadcast(a.biases);
  }
  return a;
}

}  // namespace

void check_environment() {
  cpu::isa();
  cpu::thread_count();
}

mx::array quantized_matmul(const mx::array& x_,
                           const mx::array& w,
                           const mx::array& scales_,
                           const std::optional<mx::array>& biases_,
                           bool transpose,
                           std::optional<int> group_size,
                           std::optional<int> bits,
                           const std::string& mode,
                           const MatmulOptions& options,
                           mx::StreamOrDevice s) {
  QuantFormat format{bits.value_or(4), group_size.value_or(64)};
  if (mode != "affine" || !held(format)) {
    return mx::quantized_matmul(
        x_, w, scales_, biases_, transpose, group_size, bits, mode, s);
  }
  check_weights(kMatmul, w, scales_, biases_, format);
  int K = scales_.shape(-1) * format.group_size;
  int N = w.shape(-2);
  int in = transpose ? K : N, out = transpose ? N : K;
  require(x_.ndim() >= 1 && x_.shape(-1) == in,
          kMatmul,
          "the last dimension of x must be ",
          in,
          " for w of shape ",
          text(w.shape()),
          transpose ? " transposed" : "",
          " but x has the shape ",
          text(x_.shape()));

  mx::Stream stream = mx::to_stream(s);
  // An x of integers takes the type of the scales; otherwise x's own type is
  // the type of the result.
  mx::Dtype dtype = mx::issubdtype(x_.dtype(), mx::floating)
                        ? x_.dtype()
                        : mx::promote_types(x_.dtype(), scales_.dtype());
  mx::Dtype scale_dtype = mx::result_type(scales_, *biases_);
  if (!bridge::to_dtype(dtype) || !bridge::to_dtype(scale_dtype)) {
    return mx::quantized_matmul(
        x_, w, scales_, biases_, transpose, group_size, bits, mode, s);
  }
  Aligned a = align_batches({mx::astype(x_, dtype, stream),
                             w,
                             mx::astype(scales_, scale_dtype, stream),
                             mx::astype(*biases_, scale_dtype, stream)},
                            stream);
  fusion::flatten_heads(a.x);
  mx::Shape shape = a.x.shape();
  shape.back() = out;
  bool vector = x_.ndim() == 1 && w.ndim() > 2;
  auto finish = [&](mx::array y) {
    return vector ? mx::squeeze(y, -2, stream) : y;
  };
  if (a.x.size() == 0 || N == 0) {
    return finish(mx::zeros(shape, dtype, stream));
  }
  MatmulProblem problem =
      bridge::matmul_problem(a.x, a.w, a.scales, format, transpose);
  problem.batch_invariant = options.batch_invariant;
  if (!held_on(problem, stream)) {
    mx::array y = mx::quantized_matmul(a.x,
                                       a.w,
                                       a.scales,
                                       a.biases,
                                       transpose,
                                       group_size,
                                       bits,
                                       mode,
                                       stream);
    return finish(mx::astype(y, dtype, stream));
  }
  return finish(mx::array(
      shape,
      dtype,
      std::make_shared<QuantizedMatmul>(stream, format, transpose, options),
      {contiguous(a.x, stream),
       contiguous(a.w, stream),
       contiguous(a.scales, stream),
       contiguous(a.biases, stream)}));
}

mx::array dequantize(const mx::array& w,
                     const mx::array& scales,
                     const std::optional<mx::array>& biases,
                     std::optional<int> group_size,
                     std::optional<int> bits,
                     const std::string& mode,
                     const std::optional<mx::array>& global_scale,
                     std::optional<mx::Dtype> dtype,
                     mx::StreamOrDevice s) {
  QuantFormat format{bits.value_or(4), group_size.value_or(64)};
  mx::Stream stream = mx::to_stream(s);
  mx::Dtype out_dtype = dtype.value_or(scales.dtype());
  bool ours = mode == "affine" && held(format) && biases && !global_scale &&
              bridge::to_dtype(out_dtype) &&
              bridge::to_dtype(mx::result_type(scales, *biases));
  auto theirs = [&] {
    return mx::dequantize(
        w, scales, biases, group_size, bits, mode, global_scale, dtype, s);
  };
  if (!ours) {
    return theirs();
  }
  check_weights(kDequantize, w, scales, biases, format);
  mx::Dtype scale_dtype = mx::result_type(scales, *biases);
  mx::Shape shape = w.shape();
  shape.back() = scales.shape(-1) * format.group_size;
  if (w.size() == 0) {
    return mx::zeros(shape, out_dtype, stream);
  }
  mx::array typed_scales = mx::astype(scales, scale_dtype, stream);
  mx::array typed_biases = mx::astype(*biases, scale_dtype, stream);
  if (!held_on(bridge::dequantize_problem(w, typed_scales, format, out_dtype),
               stream)) {
    return theirs();
  }
  return mx::array(shape,
                   out_dtype,
                   std::make_shared<Dequantize>(stream, format, out_dtype),
                   {contiguous(w, stream),
                    contiguous(typed_scales, stream),
                    contiguous(typed_biases, stream)});
}

}  // namespace nibble::ops

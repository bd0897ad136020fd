#include "csrc/mlx/ops/steps.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "csrc/core/error.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/facts/decision.h"
#include "csrc/mlx/facts/in_turn.h"
#include "csrc/mlx/facts/symmetric.h"
#include "csrc/mlx/nodes/unpack.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/validate.h"
#include "mlx/ops.h"
#include "mlx/utils.h"

namespace nibble::ops {
namespace {

// x, two matrices, and two arrays of indices or addends.
constexpr size_t kMostInputs = 9;

// True if all biases are known to follow from the scales.
bool is_symmetric(const Call& call, const QuantFormat& format) {
  auto known = [&](const QuantizedArrays& q) {
    return symmetric::known(q.scales, *q.biases, format.bits);
  };
  return call.options &&
         (call.options->symmetric ||
          (known(call.matrix) && (!call.up || known(*call.up))));
}

// The packed matrices of a product.
struct Packed {
  std::shared_ptr<const repack::Stored> matrix, up;
};

// Those of a product on the CPU (facts/repack.h), if all are packed alike and
// the product can read them.
Packed packed(const Call& call,
              const QuantFormat& format,
              mx::Dtype scale_dtype) {
  if (!call.x || !call.transpose || call.stream.device != mx::Device::cpu) {
    return {};
  }
  auto readable = [&](const QuantizedArrays& q) {
    auto stored = repack::stored(q);
    if (stored) {
      const QuantFormat& own = stored->packed->form().format;
      bool fits =
          own.bits == format.bits && own.group_size == format.group_size &&
          own.info().mlx_name == format.info().mlx_name &&
          (own.mode != Mode::kSymmetric || is_symmetric(call, format)) &&
          stored->scales.dtype() == scale_dtype;
      stored = fits ? std::move(stored) : nullptr;
    }
    return stored;
  };
  Packed all{readable(call.matrix), nullptr};
  if (!all.matrix || !call.up) {
    return all;
  }
  all.up = readable(*call.up);
  auto mode = [](const auto& q) { return q->packed->form().format.mode; };
  return all.up && mode(all.up) == mode(all.matrix) ? std::move(all) : Packed{};
}

// The type to which MLX promotes scales and biases.
mx::Dtype parameter_dtype(const QuantizedArrays& q) {
  mx::Dtype scales = q.scales.dtype(), biases = q.biases_input().dtype();
  return scales == biases ? scales : mx::promote_types(scales, biases);
}

// Appends the arrays of a matrix as a node takes them.
void append(std::vector<mx::array>& inputs,
            const QuantizedArrays& q,
            const std::shared_ptr<const repack::Stored>& stored,
            mx::Dtype scale_dtype,
            const mx::Stream& stream) {
  if (stored) {
    inputs.push_back(stored->w);
    inputs.push_back(stored->scales);
    inputs.push_back(stored->biases ? *stored->biases
                     : q.biases     ? *q.biases
                                    : stored->scales);
    return;
  }
  QuantizedArrays own = repack::own_arrays(q);
  inputs.push_back(own.w);
  inputs.push_back(mx::astype(own.scales, scale_dtype, stream));
  inputs.push_back(mx::astype(own.biases_input(), scale_dtype, stream));
}

// The type of a product: that of x, or a promoted one if x has integers.
mx::Dtype result_dtype(const mx::array& x, const mx::array& scales) {
  return mx::issubdtype(x.dtype(), mx::floating)
             ? x.dtype()
             : mx::promote_types(x.dtype(), scales.dtype());
}

// The type that dequantize has by default: that of scales that are floats in
// MLX, else MLX's own default.
mx::Dtype default_dtype(const mx::array& scales, const ModeInfo& mode) {
  return is_byte(mode.scale_dtypes[0]) ? mx::bfloat16 : scales.dtype();
}

// Indices of `matrices` as uint32.
mx::array normalise(const char* op,
                    const std::optional<mx::array>& indices,
                    const mx::array& matrices,
                    const mx::Stream& stream) {
  if (indices) {
    require(mx::issubdtype(indices->dtype(), mx::integer),
            op,
            "indices must be integers but their dtype is ",
            indices->dtype());
    return mx::astype(*indices, mx::uint32, stream);
  }
  mx::Shape shape = bridge::batch_shape(matrices.shape());
  int64_t count = 1;
  for (int d : shape) {
    count *= d;
    require(count <= std::numeric_limits<int>::max(),
            op,
            "fewer than 2**31 matrices are required without indices but got "
            "the shape ",
            text(matrices.shape()));
  }
  return mx::reshape(mx::arange(0, static_cast<int>(count), mx::uint32, stream),
                     shape,
                     stream);
}

}  // namespace

bool Request::is_empty() const {
  return std::ranges::any_of(
      inputs, [](const mx::array& input) { return input.size() == 0; });
}

std::optional<Request> normalise(const Call& call) {
  QuantFormat format = call.args.format();
  check_format(call.op, format);
  const QuantizedArrays& first = call.matrix;
  if (!call.args.is_ours() || first.global_scale) {
    return std::nullopt;
  }
  check_weights(call.op, first, format);
  mx::Dtype scale_dtype = parameter_dtype(first);
  if (call.up) {
    check_weights(call.op, *call.up, format);
    scale_dtype = mx::promote_types(scale_dtype, parameter_dtype(*call.up));
  }
  mx::Dtype dtype =
      call.dtype.value_or(default_dtype(first.scales, format.info()));
  if (call.x) {
    int K = first.scales.shape(-1) * format.group_size;
    check_activations(call.op,
                      *call.x,
                      first.w,
                      call.transpose ? K : first.w.shape(-2),
                      call.transpose,
                      call.gathered);
    dtype = result_dtype(*call.x, first.scales);
  }
  if (!bridge::to_dtype(dtype) ||
      !bridge::scale_dtype(scale_dtype, format.info())) {
    return std::nullopt;
  }
  Packed stored = packed(call, format, scale_dtype);
  if (stored.matrix) {
    format.mode = stored.matrix->packed->form().format.mode;
  } else if (format.mode == Mode::kAffine) {
    format.mode = affine_mode(is_symmetric(call, format));
  }
  Request request{format, dtype, {}};
  request.inputs.reserve(kMostInputs);
  if (call.x) {
    request.inputs.push_back(mx::astype(*call.x, dtype, call.stream));
  }
  append(request.inputs, first, stored.matrix, scale_dtype, call.stream);
  if (call.up) {
    append(request.inputs, *call.up, stored.up, scale_dtype, call.stream);
  }
  return request;
}

std::pair<mx::array, mx::array> normalise(const char* op,
                                          const GatherIndices& indices,
                                          const mx::array& x,
                                          const mx::array& w,
                                          const mx::Stream& stream) {
  mx::array rhs = normalise(op, indices.rhs, w, stream);
  if (!indices.lhs && stream.device == mx::Device::gpu) {
    mx::Shape batch = bridge::batch_shape(x.shape());
    mx::Shape shape = mx::broadcast_shapes(batch, rhs.shape());
    if (auto lhs = in_turn::indices(batch, shape)) {
      return {*lhs, mx::broadcast_to(rhs, shape, stream)};
    }
  }
  mx::array lhs = normalise(op, indices.lhs, x, stream);
  mx::Shape shape = mx::broadcast_shapes(lhs.shape(), rhs.shape());
  return {mx::broadcast_to(lhs, shape, stream),
          mx::broadcast_to(rhs, shape, stream)};
}

void align_batches(Request& request, const mx::Stream& stream) {
  mx::array& x = request.inputs[0];
  const mx::Shape& w = request.inputs[1].shape();
  if (w.size() == 2) {
    return;
  }
  if (x.ndim() == 1) {
    x = mx::expand_dims(x, 0, stream);
  }
  mx::Shape wanted = bridge::batch_shape(w);
  mx::Shape batch =
      mx::broadcast_shapes(bridge::batch_shape(x.shape()), wanted);
  bool matches = bridge::match_batch(batch, wanted).has_value();
  for (size_t i = 1; !matches && i < request.inputs.size(); i += 3) {
    request.inputs = repack::unpacked(std::move(request.inputs), int(i));
  }
  auto end = matches ? request.inputs.begin() + 1 : request.inputs.end();
  for (auto input = request.inputs.begin(); input != end; ++input) {
    mx::Shape shape = batch;
    shape.insert(shape.end(), {input->shape(-2), input->shape(-1)});
    *input = mx::broadcast_to(*input, shape, stream);
  }
}

mx::array build(std::shared_ptr<mx::Primitive> node,
                std::vector<mx::array> inputs,
                mx::Dtype dtype) {
  mx::Shape shape = node->output_shapes(inputs)[0];
  return build(std::move(node), std::move(inputs), std::move(shape), dtype);
}

mx::array build(std::shared_ptr<mx::Primitive> node,
                std::vector<mx::array> inputs,
                mx::Shape shape,
                mx::Dtype dtype) {
  if (node->device() == mx::Device::gpu) {
    for (mx::array& input : inputs) {
      // The launch copies a view, if it has no more dimensions than this.
      if (input.ndim() >= NIBBLE_CONTIGUOUS_DIMS) {
        input = mx::contiguous(input, false, node->stream());
      }
    }
  }
  return mx::array(std::move(shape), dtype, std::move(node), std::move(inputs));
}

mx::Dtype dense_dtype(const QuantizedArrays& matrix, mx::Dtype dtype) {
  bool usual = !matrix.biases || matrix.scales.dtype() == dtype;
  return usual ? dtype : mx::float32;
}

mx::array even(const mx::array& a, const mx::Stream& stream) {
  return mx::contiguous(a, false, stream);
}

QuantizedArrays whole(const QuantizedArrays& matrix, const mx::Stream& stream) {
  if (!decision::mlx_misreads_views(stream.device)) {
    return matrix;
  }
  QuantizedArrays all = matrix;
  all.w = even(matrix.w, stream);
  all.scales = even(matrix.scales, stream);
  if (matrix.biases) {
    all.biases = even(*matrix.biases, stream);
  }
  return all;
}

mx::array rounded(const QuantizedArrays& matrix,
                  bool transpose,
                  const QuantArgs& args,
                  mx::Dtype dtype,
                  const mx::Stream& stream) {
  mx::array w = dequantize(matrix, args, dtype, stream);
  return transpose ? mx::swapaxes(w, -1, -2, stream) : w;
}

mx::array computable(mx::array y,
                     const mx::array& x,
                     const mx::array& w,
                     const mx::Stream& stream) {
  return x.size() > 0 && w.size() > 0 ? y
                                      : mx::zeros(y.shape(), y.dtype(), stream);
}

}  // namespace nibble::ops

#include "csrc/mlx/nodes/transforms.h"

#include <optional>
#include <vector>

#include "csrc/core/error.h"
#include "csrc/mlx/ops.h"
#include "mlx/ops.h"

namespace nibble {
namespace {

// Codes as float32, grouped: [..., N, K / group_size, group_size].
mx::array grouped_codes(const mx::array& w,
                        int groups,
                        QuantFormat format,
                        mx::Stream s) {
  mx::Shape shape = w.shape();
  shape.back() = groups;
  mx::array one = mx::ones(shape, mx::float32, s);
  mx::array codes = ops::dequantize({w, one, mx::zeros_like(one, s)},
                                    ops::QuantArgs::of(format),
                                    std::nullopt,
                                    s);
  return mx::unflatten(codes, -1, {groups, format.group_size}, s);
}

}  // namespace

void require_biases(QuantFormat format) {
  require(format.info().stores_biases,
          "vjp",
          "scales of a mode with biases are required for a gradient but the "
          "mode is '",
          format.info().mlx_name,
          "'");
}

GroupGradients group_gradients(const mx::array& dw,
                               const mx::array& w,
                               QuantFormat format,
                               mx::Stream s) {
  require_biases(format);
  int groups = dw.shape(-1) / format.group_size;
  mx::array grouped = mx::unflatten(dw, -1, {groups, format.group_size}, s);
  mx::array codes = grouped_codes(w, groups, format, s);
  return {mx::sum(mx::multiply(grouped, codes, s), -1, false, s),
          mx::sum(grouped, -1, false, s)};
}

mx::array sum_to(mx::array a, const mx::Shape& shape, mx::Stream s) {
  int lead = static_cast<int>(a.ndim() - shape.size());
  std::vector<int> axes;
  for (int d = 0; d < static_cast<int>(a.ndim()); ++d) {
    if (d < lead || (shape[d - lead] == 1 && a.shape(d) != 1)) {
      axes.push_back(d);
    }
  }
  return axes.empty() ? a : mx::reshape(mx::sum(a, axes, false, s), shape, s);
}

int mapped_size(const std::vector<mx::array>& inputs,
                const std::vector<int>& axes) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (axes[i] >= 0) {
      return inputs[i].shape(axes[i]);
    }
  }
  return 1;
}

mx::array to_front(const mx::array& a, int axis, int size, mx::Stream s) {
  if (axis >= 0) {
    return mx::moveaxis(a, axis, 0, s);
  }
  mx::Shape shape = a.shape();
  shape.insert(shape.begin(), size);
  return mx::broadcast_to(mx::expand_dims(a, 0, s), shape, s);
}

mx::array pad_batch(const mx::array& a, size_t ndim, mx::Stream s) {
  std::vector<int> axes;
  for (size_t d = a.ndim(); d < ndim; ++d) {
    axes.push_back(static_cast<int>(axes.size()) + 1);
  }
  return axes.empty() ? a : mx::expand_dims(a, axes, s);
}

}  // namespace nibble

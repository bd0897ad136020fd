#include "csrc/mlx/nodes/gather_mm.h"

#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/ops/steps.h"
#include "mlx/ops.h"

namespace nibble::fast {

using bridge::to_dtype;

namespace {

// The matrices w^T, if the kernel can read w^T as it lies; else nullopt.
std::optional<mx::array> transposed(const mx::array& w, const mx::Stream& s) {
  if (w.ndim() < 2 || w.size() == 0 || w.is_tracer()) {
    return std::nullopt;
  }
  if (graph::is_pending(w, "Transpose")) {
    std::vector<int> axes(w.ndim());
    std::iota(axes.begin(), axes.end(), 0);
    std::swap(axes[w.ndim() - 1], axes[w.ndim() - 2]);
    bool last_two =
        static_cast<const mx::Transpose&>(w.primitive()).state() == axes;
    return last_two ? std::optional(w.inputs()[0]) : std::nullopt;
  }
  bool lies_so =
      w.is_available() && w.strides(-2) == 1 && w.strides(-1) == w.shape(-2);
  return lies_so ? std::optional(mx::swapaxes(w, -1, -2, s)) : std::nullopt;
}

}  // namespace

mx::array gather_mm(const mx::array& x,
                    const mx::array& w,
                    const std::optional<mx::array>& lhs,
                    const std::optional<mx::array>& rhs,
                    bool sorted,
                    mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  mx::Dtype dtype = mx::promote_types(x.dtype(), w.dtype());
  bool fits = stream.device == mx::Device::cpu && x.ndim() >= 2 &&
              w.ndim() >= 2 && x.size() > 0 && x.shape(-1) == w.shape(-2) &&
              to_dtype(dtype) && to_dtype(w.dtype()) && !x.is_tracer() &&
              (!lhs || (lhs->size() > 0 && !lhs->is_tracer())) &&
              (!rhs || (rhs->size() > 0 && !rhs->is_tracer()));
  auto matrices = fits ? transposed(w, stream) : std::nullopt;
  if (!matrices) {
    return mx::gather_mm(x, w, lhs, rhs, sorted, s);
  }
  auto [left, right] =
      ops::normalise("gather_mm", {lhs, rhs, sorted}, x, w, stream);
  std::vector<mx::array> inputs = {
      mx::astype(x, dtype, stream), *matrices, left, right};
  auto node =
      std::make_shared<GatherMmPrimitive>(stream, GatherMmOptions{sorted});
  mx::Shape shape = node->output_shapes(inputs)[0];
  return mx::array(std::move(shape), dtype, std::move(node), std::move(inputs));
}

}  // namespace nibble::fast

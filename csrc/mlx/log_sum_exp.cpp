// logsumexp as a node of MLX's graph.
#include <memory>
#include <optional>
#include <vector>

#include "csrc/cpu/layers.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/fast_primitives.h"
#include "mlx/ops.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::to_dtype;

namespace {

// Whether these axes, or all, are the last one but for some of size 1.
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

namespace fast {

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
  auto primitive = std::make_shared<LogSumExpPrimitive>(stream);
  mx::Shape shape = primitive->output_shapes({a})[0];
  mx::array y(std::move(shape), a.dtype(), std::move(primitive), {a});
  if (keepdims) {
    return y;
  }
  return axes ? mx::squeeze(y, -1, stream) : mx::squeeze(y, stream);
}

}  // namespace fast

void LogSumExpPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                  std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu_task::dispatch(stream(),
                     outputs,
                     [dtype = *to_dtype(out.dtype()),
                      x = RowContiguous(inputs[0]),
                      rows = out.size(),
                      D = inputs[0].shape(-1),
                      y = out.data<void>()]() mutable {
                       cpu::log_sum_exp(
                           dtype, x.data(), static_cast<int64_t>(rows), D, y);
                     });
}

std::vector<mx::Shape> LogSumExpPrimitive::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[0].shape();
  shape.back() = 1;
  return {shape};
}

mx::array LogSumExpPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  return mx::logsumexp(inputs[0], -1, true, stream());
}

}  // namespace nibble

#include "csrc/mlx/nodes/gather_mm.h"

#include "csrc/cpu/gather_dense.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "mlx/ops.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::to_dtype;

namespace {

enum Input { kX, kW, kLhs, kRhs };

}  // namespace

void GatherMmPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                 std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  const mx::array &x = inputs[kX], &w = inputs[kW];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu::DenseGather d{};
  GatherProblem& p = d.problem;
  p.M = x.shape(-2);
  p.N = w.shape(-2);
  p.K = x.shape(-1);
  p.dtype = *to_dtype(out.dtype());
  p.B = static_cast<int>(inputs[kLhs].size());
  p.rows = static_cast<int>(x.size() / p.K / p.M);
  p.experts = static_cast<int>(w.size() / p.K / p.N);
  d.weight_dtype = *to_dtype(w.dtype());
  d.y = out.data<void>();
  cpu_task::dispatch(stream(),
                     outputs,
                     [d,
                      x = RowContiguous(x),
                      w = RowContiguous(w),
                      lhs = RowContiguous(inputs[kLhs]),
                      rhs = RowContiguous(inputs[kRhs])]() mutable {
                       d.x = x.data();
                       d.w = w.data();
                       cpu::gather_dense(
                           d, {lhs.as<uint32_t>(), rhs.as<uint32_t>()});
                     });
}

std::vector<mx::Shape> GatherMmPrimitive::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[kLhs].shape();
  shape.push_back(inputs[kX].shape(-2));
  shape.push_back(inputs[kW].shape(-2));
  return {shape};
}

mx::array GatherMmPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  mx::Stream s = stream();
  return mx::gather_mm(
      inputs[kX],
      mx::astype(mx::swapaxes(inputs[kW], -1, -2, s), inputs[kX].dtype(), s),
      inputs[kLhs],
      inputs[kRhs],
      options_.sorted,
      s);
}

}  // namespace nibble

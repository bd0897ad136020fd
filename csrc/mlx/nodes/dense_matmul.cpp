#include "csrc/mlx/nodes/dense_matmul.h"

#include "csrc/cpu/dense.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "mlx/ops.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::StridedRows;
using bridge::to_dtype;

void DenseMatmulPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                    std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  const mx::array &x = inputs[0], &w = inputs[1];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu::DenseProduct problem{int64_t(out.size() / out.shape(-1)),
                            w.shape(0),
                            w.shape(1),
                            *to_dtype(out.dtype()),
                            *to_dtype(w.dtype()),
                            {},
                            nullptr,
                            nullptr,
                            out.data<void>()};
  cpu_task::dispatch(stream(),
                     outputs,
                     [problem,
                      has_bias = inputs.size() > 2,
                      x = StridedRows(x),
                      w = RowContiguous(w),
                      bias = RowContiguous(inputs.back())]() mutable {
                       problem.x = x.grid();
                       problem.w = w.data();
                       problem.bias = has_bias ? bias.data() : nullptr;
                       cpu::multiply(problem);
                     });
}

std::vector<mx::Shape> DenseMatmulPrimitive::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[0].shape();
  shape.back() = inputs[1].shape(0);
  return {shape};
}

mx::array DenseMatmulPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  mx::Stream s = stream();
  mx::array y = mx::matmul(inputs[0], mx::transpose(inputs[1], s), s);
  return inputs.size() > 2 ? mx::add(y, inputs[2], s) : y;
}

}  // namespace nibble

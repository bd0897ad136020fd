#include "csrc/mlx/nodes/layers.h"

#include <optional>

#include "csrc/cpu/layers.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::StridedRows;
using bridge::to_dtype;

void RmsNormPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  const mx::array& x = inputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  bool has_weight = inputs.size() > 1;
  cpu::RmsNorm problem{x.shape(-1),
                       options_,
                       *to_dtype(x.dtype()),
                       *to_dtype(inputs.back().dtype()),
                       *to_dtype(out.dtype())};
  cpu_task::dispatch(
      stream(),
      outputs,
      [problem,
       has_weight,
       rows = StridedRows(x),
       weight = RowContiguous(inputs.back()),
       y = out.data<void>()]() mutable {
        cpu::rms_norm(
            problem, rows.grid(), has_weight ? weight.data() : nullptr, y);
      });
}

std::vector<mx::Shape> RmsNormPrimitive::output_shapes(
    const std::vector<mx::array>& inputs) {
  return {inputs[0].shape()};
}

mx::array RmsNormPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  std::optional<mx::array> weight;
  if (inputs.size() > 1) {
    weight = inputs[1];
  }
  return mx::fast::rms_norm(inputs[0], weight, options_, stream());
}

void RopePrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                             std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  const mx::array& offsets = inputs[options_.has_offsets ? 1 : 0];
  const mx::array& periods = inputs.back();
  cpu_task::dispatch(
      stream(),
      outputs,
      [options = options_,
       dtype = *to_dtype(out.dtype()),
       D = out.shape(-1),
       one_each = options_.has_offsets && offsets.size() > 1,
       rows = StridedRows(inputs[0]),
       offsets = RowContiguous(offsets),
       periods = RowContiguous(periods),
       y = out.data<void>()]() mutable {
        cpu::Rope problem{D,
                          options.dims,
                          options.traditional,
                          options.scale,
                          dtype,
                          options.base,
                          options.has_periods ? periods.as<float>() : nullptr};
        const cpu::RowGrid& grid = rows.grid();
        int64_t D_ = D, L = grid.shape[2], heads = grid.shape[1];
        cpu::rope(problem,
                  grid,
                  options.has_offsets ? offsets.as<int32_t>() : &options.offset,
                  one_each,
                  {heads * L * D_, L * D_, D_},
                  y);
      });
}

std::vector<mx::Shape> RopePrimitive::output_shapes(
    const std::vector<mx::array>& inputs) {
  return {inputs[0].shape()};
}

mx::array RopePrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  const RopeOptions& o = options_;
  std::optional<float> base;
  std::optional<mx::array> periods;
  if (o.has_periods) {
    periods = inputs.back();
  } else {
    base = o.base;
  }
  return mx::fast::rope(
      inputs[0],
      o.dims,
      o.traditional,
      base,
      o.scale,
      o.has_offsets ? inputs[1] : mx::array(o.offset, mx::int32),
      periods,
      stream());
}

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

void ArgMaxPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                               std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu_task::dispatch(stream(),
                     outputs,
                     [dtype = *to_dtype(inputs[0].dtype()),
                      x = RowContiguous(inputs[0]),
                      rows = out.size(),
                      D = inputs[0].shape(-1),
                      y = out.data<uint32_t>()]() mutable {
                       cpu::arg_max(
                           dtype, x.data(), static_cast<int64_t>(rows), D, y);
                     });
}

std::vector<mx::Shape> ArgMaxPrimitive::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[0].shape();
  shape.back() = 1;
  return {shape};
}

mx::array ArgMaxPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  return mx::argmax(inputs[0], -1, true, stream());
}

}  // namespace nibble

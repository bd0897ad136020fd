// RoPE as a node of MLX's graph.
#include <memory>
#include <optional>

#include "csrc/cpu/layers.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/fast_primitives.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::StridedRows;
using bridge::to_dtype;

namespace fast {

mx::array rope(const mx::array& x,
               int dims,
               bool traditional,
               std::optional<float> base,
               float scale,
               const std::variant<int, mx::array>& offset,
               const std::optional<mx::array>& freqs,
               mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  const mx::array* offsets = std::get_if<mx::array>(&offset);
  bool offsets_fit =
      !offsets ||
      (mx::issubdtype(offsets->dtype(), mx::integer) &&
       (offsets->ndim() == 0 ||
        (offsets->ndim() == 1 && x.ndim() >= 1 &&
         (offsets->shape(0) == 1 || offsets->shape(0) == x.shape(0)))));
  bool freqs_fit =
      !freqs || (freqs->ndim() == 1 && freqs->shape(0) == dims / 2 &&
                 mx::issubdtype(freqs->dtype(), mx::floating));
  bool fits = x.ndim() >= 3 && x.size() > 0 && dims > 0 && dims % 2 == 0 &&
              dims <= x.shape(-1) && base.has_value() != freqs.has_value() &&
              offsets_fit && freqs_fit;
  bool ours = stream.device == mx::Device::cpu && fits && to_dtype(x.dtype());
  if (!ours) {
    return offsets ? mx::fast::rope(
                         x, dims, traditional, base, scale, *offsets, freqs, s)
                   : mx::fast::rope(x,
                                    dims,
                                    traditional,
                                    base,
                                    scale,
                                    std::get<int>(offset),
                                    freqs,
                                    s);
  }
  std::vector<mx::array> inputs = {x};
  if (offsets) {
    inputs.push_back(mx::astype(*offsets, mx::int32, stream));
  }
  if (freqs) {
    inputs.push_back(mx::astype(*freqs, mx::float32, stream));
  }
  RopeOptions options{dims,
                      traditional,
                      base.value_or(0),
                      scale,
                      offsets ? 0 : std::get<int>(offset),
                      offsets != nullptr,
                      freqs.has_value()};
  return mx::array(x.shape(),
                   x.dtype(),
                   std::make_shared<RopePrimitive>(stream, options),
                   std::move(inputs));
}

}  // namespace fast

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

}  // namespace nibble

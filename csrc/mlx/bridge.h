// Converts MLX's arrays to our problems: dtypes, batches, contiguity.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "csrc/core/cpu_planner.h"
#include "csrc/core/dtype.h"
#include "csrc/core/planner.h"
#include "csrc/core/problem.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/operands.h"
#include "csrc/cpu/profile.h"
#include "csrc/mlx/options.h"
#include "mlx/array.h"

namespace nibble::bridge {

namespace mx = mlx::core;

// nullopt for a type that our kernels do not support.
std::optional<Dtype> to_dtype(mx::Dtype dtype);
mx::Dtype to_mlx(Dtype dtype);

// The type of a mode's scales; nullopt if they cannot have MLX's type.
std::optional<Dtype> scale_dtype(mx::Dtype dtype, const ModeInfo& mode);

// The plan of a product on this machine's CPU.
template <typename Problem>
auto cpu_plan(const Problem& problem, const ops::MatmulOptions& options) {
  return plan_cpu(problem, cpu::profile(), options.activations);
}

// The mapping of the batch dimensions `x` of activations to those of the
// weights, `w`, which broadcast to x. nullopt if no (b / repeat) % count
// describes it, as for x [2, 3, 4] with w [2, 1, 4].
std::optional<Batch> match_batch(const mx::Shape& x, const mx::Shape& w);

// All dimensions but the last `inner`.
mx::Shape batch_shape(const mx::Shape& shape, int inner = 2);

// Gives an array [B, heads, L, D] the memory layout of a row-contiguous
// [B, L, heads, D].
void give_head_memory(mx::array& a);

// A row-contiguous array in the memory of another, from byte `offset` on.
mx::array view(const mx::array& memory,
               size_t offset,
               mx::Shape shape,
               mx::Dtype dtype);

// The problem of x @ w, from the shapes of a primitive's inputs.
MatmulProblem matmul_problem(const mx::array& x,
                             const mx::array& w,
                             const mx::array& scales,
                             QuantFormat format,
                             bool transpose);

// The problem of gather_qmm, from the shapes of a primitive's inputs.
GatherProblem gather_problem(const mx::array& x,
                             const mx::array& w,
                             const mx::array& scales,
                             const mx::array& lhs,
                             QuantFormat format,
                             bool transpose,
                             bool sorted,
                             bool batch_invariant);

// The problem of w_hat, of type `dtype`: all matrices of w, one below the
// other.
DequantizeProblem dequantize_problem(const mx::array& w,
                                     const mx::array& scales,
                                     QuantFormat format,
                                     mx::Dtype dtype);

// The row-contiguous bytes of an array: its own memory if that is contiguous,
// else a copy, which this object owns. A node constructs it during evaluation,
// when the inputs have memory. Its task calls data(), when they have values.
class RowContiguous {
 public:
  explicit RowContiguous(const mx::array& a);

  const void* data();
  template <typename T>
  const T* as() {
    return static_cast<const T*>(data());
  }

 private:
  const void* data_ = nullptr;
  std::optional<mx::array> scattered_;  // the array to copy
  std::vector<std::byte> copy_;
};

// The rows (last dimension) of an array [A, ..., B, D] as a grid of A x ... x
// B. Its own memory if rows are contiguous and there are at most four
// dimensions, else a copy, which this object owns. Used as RowContiguous.
class StridedRows {
 public:
  explicit StridedRows(const mx::array& a);

  const cpu::RowGrid& grid();

 private:
  std::optional<RowContiguous> copy_;
  cpu::RowGrid grid_;
};

}  // namespace nibble::bridge

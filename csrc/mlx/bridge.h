// Between MLX's arrays and our problems: dtypes, batches, contiguity.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "csrc/core/dtype.h"
#include "csrc/core/planner.h"
#include "csrc/core/problem.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/matmul.h"
#include "csrc/mlx/options.h"
#include "mlx/array.h"

namespace nibble::bridge {

namespace mx = mlx::core;

// nullopt for a type that our kernels do not compute in.
std::optional<Dtype> to_dtype(mx::Dtype dtype);
mx::Dtype to_mlx(Dtype dtype);

inline cpu::Activations activations(const ops::MatmulOptions& options) {
  return options.int8_activations ? cpu::Activations::kInt8
                                  : cpu::Activations::kExact;
}

// How the batch dimensions `x` of activations find their weights among `w`
// (broadcastable to x); nullopt where no (b / repeat) % count does, as in
// x [2, 3, 4] with w [2, 1, 4].
std::optional<Batch> match_batch(const mx::Shape& x, const mx::Shape& w);

// All dimensions but the last `inner`.
mx::Shape batch_shape(const mx::Shape& shape, int inner = 2);

// Gives an array [B, heads, L, D] the memory of a row-contiguous [B, L, heads,
// D].
void give_head_memory(mx::array& a);

// An array in the memory of another, from this byte on, row-contiguous.
mx::array view(const mx::array& memory,
               size_t offset,
               mx::Shape shape,
               mx::Dtype dtype);

// The problem that x @ w poses, by the shapes that the primitive was given.
MatmulProblem matmul_problem(const mx::array& x,
                             const mx::array& w,
                             const mx::array& scales,
                             QuantFormat format,
                             bool transpose);

// The problem that gather_qmm poses, by the shapes that the primitive was
// given.
GatherProblem gather_problem(const mx::array& x,
                             const mx::array& w,
                             const mx::array& scales,
                             const mx::array& lhs,
                             QuantFormat format,
                             bool transpose,
                             bool sorted,
                             bool batch_invariant);

// w_hat of dtype `dtype` from all matrices of w, one below the other.
DequantizeProblem dequantize_problem(const mx::array& w,
                                     const mx::array& scales,
                                     QuantFormat format,
                                     mx::Dtype dtype);

// Row-contiguous bytes of an array: its own memory where it is contiguous, else
// a copy, owned by this object. Made when a node is evaluated, which is when
// its inputs have memory; asked for data by the task, when they have values.
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
  std::optional<mx::array> scattered_;  // what is to be copied
  std::vector<std::byte> copy_;
};

// The rows (last dimension) of an array [A, ..., B, D] as a grid of
// A x ... x B: where they lie, if rows are contiguous and there are no more
// than four dimensions; else of a copy, owned by this object. Made and asked
// as RowContiguous.
class StridedRows {
 public:
  explicit StridedRows(const mx::array& a);

  const cpu::RowGrid& grid();

 private:
  std::optional<RowContiguous> copy_;
  cpu::RowGrid grid_;
};

}  // namespace nibble::bridge

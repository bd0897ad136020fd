// fp32 sums of a chunk, which become rows of y.
#pragma once

#include "csrc/cpu/isa.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/scratch.h"

namespace nibble::cpu {

// Sums [M, range] of rows first.. with rows `range` of w. The thread keeps them
// until it makes others.
class Sums {
 public:
  Sums(const Form& form,
       const Rows& rows,
       const Weights& w,
       int first,
       int M,
       Range range)
      : dtype_(form.dtype),
        width_(range.end - range.begin),
        sums_(thread_floats(size_t(M) * width_ + kMaxLanes)) {
    rows.multiply(
        rows_of(w, range), first, M, {0, width_}, Dtype::kFloat32, sums_);
  }

  // y = row m + bias + residual.
  void store(int m,
             const uint8_t* bias,
             const uint8_t* residual,
             uint8_t* y) const {
    isa().layers.add_and_round(
        dtype_, sums_ + size_t(m) * width_, width_, bias, residual, y);
  }

 private:
  Dtype dtype_;
  int width_;
  float* sums_;
};

// The same for two matrices, for y = silu(gate) * up.
class GatedSums {
 public:
  GatedSums(const Form& form,
            const Rows& rows,
            const Weights& gate,
            const Weights& up,
            int first,
            int M,
            Range range)
      : dtype_(form.dtype),
        width_(range.end - range.begin),
        gate_(thread_floats(2 * size_t(M) * width_ + kMaxLanes)),
        up_(gate_ + size_t(M) * width_) {
    Range all{0, width_};
    rows.multiply(rows_of(gate, range), first, M, all, Dtype::kFloat32, gate_);
    rows.multiply(rows_of(up, range), first, M, all, Dtype::kFloat32, up_);
  }

  void store(int m, uint8_t* y) const {
    size_t at = size_t(m) * width_;
    isa().layers.swiglu_and_round(dtype_, gate_ + at, up_ + at, width_, y);
  }

 private:
  Dtype dtype_;
  int width_;
  float* gate_;
  float* up_;
};

}  // namespace nibble::cpu

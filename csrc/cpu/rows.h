// The common parts of the backend's entry points: activations prepared for the
// kernels, weights of a stack, and chunks of columns for the threads.
#pragma once

#include <algorithm>
#include <vector>

#include "csrc/core/cpu_plan.h"
#include "csrc/core/dtype.h"
#include "csrc/cpu/floats.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/operands.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {

inline const uint8_t* at(const void* p, size_t index, Dtype dtype) {
  return static_cast<const uint8_t*>(p) + index * size_of(dtype);
}

inline uint8_t* at(void* p, size_t index, Dtype dtype) {
  return static_cast<uint8_t*>(p) + index * size_of(dtype);
}

// The properties that all products of a call share: x [.., in()] meets matrices
// [N, K].
struct Form {
  int N, K;
  Dtype dtype;
  Dtype scale_dtype;
  QuantFormat format;
  bool transpose;
  CpuKernelPlan plan;

  template <typename Problem>
  Form(const Problem& p, const CpuKernelPlan& plan)
      : N(p.N),
        K(p.K),
        dtype(p.dtype),
        scale_dtype(p.scale_dtype),
        format(p.format),
        transpose(p.transpose),
        plan(plan) {}

  int in() const { return transpose ? K : N; }
  int out() const { return transpose ? N : K; }

  // Matrix `index` of a stack of matrices [N, K].
  Weights matrix(const QuantizedOperands& o, int index) const;
};

// A matrix [N, K], the first of a stack, without its packed copy.
Weights as_weights(const QuantizedOperands& o,
                   int N,
                   int K,
                   QuantFormat format,
                   Dtype scale_dtype);

// The rows `rows` of w.
Weights rows_of(const Weights& w, Range rows);

// Rows of x [.., in] in the form that kernels read: fp32 in the order of the
// codes, integers, or bfloat16.
class Rows {
 public:
  Rows(const Form& form, int capacity);

  // Prepares the `count` rows at x as rows 0.. on all threads. x must outlive
  // their use.
  void fill(const void* x, int count);

  // Prepares the `count` rows at x, which outlive their use, as rows first...
  void put(int first, const void* x, int count);

  // y[m, range] of the product of rows first.. with w, rounded to `dtype`. Rows
  // of y have the length that all of w gives them. At most kMaxRows rows.
  void multiply(const Weights& w,
                int first,
                int count,
                Range range,
                Dtype dtype,
                void* y) const;

 private:
  // The integers from row `first` on.
  QuantizedRows integers(int first) const;
  void put_exactly(int first, const void* x, int count);
  void multiply_bfloats(const Weights& w,
                        int first,
                        int count,
                        Range range,
                        Dtype dtype,
                        void* y) const;
  void multiply_exactly(const Weights& w,
                        const float* x,
                        int count,
                        Reading reading,
                        Range range,
                        Dtype dtype,
                        void* y) const;

  const Form form_;
  const Isa& isa_;
  Floats memory_;
  const float* floats_ = nullptr;
  const IntegerKernels* integer_kernels_ = nullptr;  // null: exact or bfloat16
  const BfloatKernels* bfloat_kernels_ = nullptr;
  QuantizedRows integers_{};
  int row_bytes_ = 0;  // of a run of them, from a row to the next
  // The rows that rounded numbers cannot express, in fp32; null for all others.
  std::vector<Floats> exact_;
  std::vector<const uint8_t*> sources_;  // the rows of x, unless exact
};

// Calls body(range) on all threads for ranges of `step` columns of y [.., out].
template <typename Fn>
void by_ranges(int out, int step, Fn&& body) {
  parallel_for((out + step - 1) / step, [&](int i) {
    body(Range{i * step, std::min(out, (i + 1) * step)});
  });
}

}  // namespace nibble::cpu

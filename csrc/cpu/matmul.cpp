#include "csrc/cpu/matmul.h"

#include <algorithm>

#include "csrc/core/cpu_planner.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/kernels.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/sums.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// Calls body(rows, matrix, M, row) for blocks of M rows of y, from `row` on,
// that meet one matrix of weights; `rows` holds the same rows of x.
template <typename Fn>
void by_blocks(const MatmulProblem& problem,
               const CpuPlan& plan,
               const Form& form,
               const void* x,
               Fn&& body) {
  MatmulProblem p = merge_rows(problem);
  Rows rows(form, plan.block_rows);
  for (int b = 0; b < p.batch.size; ++b) {
    for (int m = 0; m < p.M; m += plan.block_rows) {
      int M = std::min(plan.block_rows, p.M - m);
      size_t row = size_t(b) * p.M + m;
      rows.fill(at(x, row * form.in(), p.dtype), M);
      body(rows, b / p.batch.repeat % p.batch.count, M, row);
    }
  }
}

// The place of a block of rows in y, and its addends.
struct Addends {
  const Form& form;
  const MatmulProblem& problem;
  const MatmulOperands& o;
  size_t row;

  size_t first(int m, int column) const {
    return (row + m) * form.out() + column;
  }
  void* y(int m, int column) const {
    return at(o.y, first(m, column), form.dtype);
  }
  const uint8_t* bias(int column) const {
    return problem.epilogue.bias ? at(o.bias, column, form.dtype) : nullptr;
  }
  const uint8_t* residual(int m, int column) const {
    return problem.epilogue.residual
               ? at(o.residual, first(m, column), form.dtype)
               : nullptr;
  }
};

// A product whose chunks are ranges of k, too: it has few columns.
void multiply_in_depth(const Form& form,
                       const CpuPlan& plan,
                       const Rows& rows,
                       const Weights& w,
                       int M,
                       const Addends& to) {
  int parts = (form.K + plan.depth - 1) / plan.depth;
  int ranges = (form.N + plan.columns - 1) / plan.columns;
  size_t count = size_t(M) * form.N;
  Floats sums = make_floats(parts * count);
  parallel_for(parts * ranges, [&](int i) {
    int begin = i % ranges * plan.columns, k = i / ranges * plan.depth;
    Weights part = w;
    part.columns = {k, std::min(form.K, k + plan.depth)};
    Range range{begin, std::min(form.N, begin + plan.columns)};
    rows.multiply(
        part, 0, M, range, Dtype::kFloat32, &sums[i / ranges * count]);
  });
  for (size_t i = count; i < parts * count; ++i) {
    sums[i % count] += sums[i];
  }
  for (int m = 0; m < M; ++m) {
    isa().layers.add_and_round(form.dtype,
                               &sums[size_t(m) * form.N],
                               form.N,
                               to.bias(0),
                               to.residual(m, 0),
                               static_cast<uint8_t*>(to.y(m, 0)));
  }
}

}  // namespace

void matmul(const MatmulProblem& problem,
            const CpuPlan& plan,
            const MatmulOperands& o) {
  Form form(problem, plan);
  auto block = [&](const Rows& rows, int matrix, int M, size_t row) {
    Weights w = form.matrix(o.weights, matrix);
    Addends to{form, problem, o, row};
    if (form.transpose && plan.depth < form.K) {
      multiply_in_depth(form, plan, rows, w, M, to);
    } else if (!problem.epilogue.any()) {
      by_ranges(form.out(), plan.columns, [&](Range range) {
        rows.multiply(w, 0, M, range, form.dtype, to.y(0, 0));
      });
    } else {
      int columns = std::min(plan.columns, columns_of_sums(M));
      by_ranges(form.out(), columns, [&](Range range) {
        Sums sums(form, rows, w, 0, M, range);
        for (int m = 0; m < M; ++m) {
          sums.store(m,
                     to.bias(range.begin),
                     to.residual(m, range.begin),
                     static_cast<uint8_t*>(to.y(m, range.begin)));
        }
      });
    }
  };
  by_blocks(problem, plan, form, o.x, block);
}

void swiglu_matmul(const MatmulProblem& problem,
                   const CpuPlan& plan,
                   const SwigluOperands& o) {
  Form form(problem, plan);
  auto block = [&](const Rows& rows, int matrix, int M, size_t row) {
    Weights gate = form.matrix(o.gate, matrix);
    Weights up = form.matrix(o.up, matrix);
    int columns = std::min(plan.columns, columns_of_sums(2 * M));
    by_ranges(form.out(), columns, [&](Range range) {
      GatedSums sums(form, rows, gate, up, 0, M, range);
      for (int m = 0; m < M; ++m) {
        size_t to = (row + m) * form.N + range.begin;
        sums.store(m, at(o.y, to, form.dtype));
      }
    });
  };
  by_blocks(problem, plan, form, o.x, block);
}

void dequantize(const DequantizeProblem& problem,
                const CpuDequantizePlan& plan,
                const QuantizedOperands& o,
                void* out) {
  Weights weights = as_weights(
      o, problem.rows, problem.K, problem.format, problem.scale_dtype);
  by_ranges(problem.rows, plan.rows, [&](Range rows) {
    isa().kernels.dequantize(weights, rows, problem.dtype, out);
  });
}

}  // namespace nibble::cpu

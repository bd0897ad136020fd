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

// Returns the columns of y in a chunk of M rows.
int columns_of(const MatmulProblem& problem, const CpuPlan& plan, int M) {
  return problem.epilogue.any() ? std::min(plan.columns, columns_of_sums(M))
                                : plan.columns;
}

// A chunk: columns `range` of M rows of y.
void multiply(
    const Rows& rows, const Weights& w, int M, Range range, const Addends& to) {
  if (!to.problem.epilogue.any()) {
    rows.multiply(w, 0, M, range, to.form.dtype, to.y(0, 0));
    return;
  }
  Sums sums(to.form, rows, w, 0, M, range);
  for (int m = 0; m < M; ++m) {
    sums.store(m,
               to.bias(range.begin),
               to.residual(m, range.begin),
               static_cast<uint8_t*>(to.y(m, range.begin)));
  }
}

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

// A product of a single block, one of several.
struct Part {
  const PlannedMatmul& product;
  Form form;
  Weights w;
  int M, columns;

  explicit Part(const PlannedMatmul& p)
      : product(p),
        form(p.problem, p.plan),
        w(form.matrix(p.operands.weights, 0)),
        M(merge_rows(p.problem).M),
        columns(columns_of(p.problem, p.plan, M)) {}

  int chunks() const { return (form.out() + columns - 1) / columns; }
  void compute(const Rows& rows, int chunk) const {
    Range range{chunk * columns, std::min(form.out(), (chunk + 1) * columns)};
    Addends to{form, product.problem, product.operands, 0};
    multiply(rows, w, M, range, to);
  }
};

// True if one chunk has all rows of x, and all of k.
bool is_one_block(const PlannedMatmul& p) {
  MatmulProblem merged = merge_rows(p.problem);
  return merged.batch.size == 1 && merged.M <= p.plan.block_rows &&
         p.problem.transpose && p.plan.depth >= p.problem.K;
}

// True if both read the same rows in the same form.
bool share_rows(const PlannedMatmul& a, const PlannedMatmul& b) {
  const MatmulProblem &p = a.problem, &q = b.problem;
  const CpuKernelPlan &one = a.plan, &other = b.plan;
  return a.operands.x == b.operands.x && merge_rows(p).M == merge_rows(q).M &&
         p.K == q.K && p.dtype == q.dtype && p.format == q.format &&
         one == other && is_one_block(a) && is_one_block(b);
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
    } else {
      by_ranges(form.out(), columns_of(problem, plan, M), [&](Range range) {
        multiply(rows, w, M, range, to);
      });
    }
  };
  by_blocks(problem, plan, form, o.x, block);
}

void matmuls(const std::vector<PlannedMatmul>& products) {
  for (size_t first = 0, end; first < products.size(); first = end) {
    const PlannedMatmul& p = products[first];
    end = first + 1;
    while (end < products.size() && share_rows(p, products[end])) ++end;
    if (end == first + 1) {
      matmul(p.problem, p.plan, p.operands);
      continue;
    }
    std::vector<Part> parts(products.begin() + first, products.begin() + end);
    Rows rows(parts[0].form, parts[0].M);
    rows.fill(p.operands.x, parts[0].M);
    int chunks = 0;
    for (const Part& part : parts) chunks += part.chunks();
    parallel_for(chunks, [&](int i) {
      auto part = parts.begin();
      for (; i >= part->chunks(); ++part) i -= part->chunks();
      part->compute(rows, i);
    });
  }
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

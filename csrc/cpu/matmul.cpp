#include "csrc/cpu/matmul.h"

#include <algorithm>
#include <limits>

#include "csrc/cpu/finish.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/kernels.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// Dequantized codes of a piece.
constexpr int kDequantizePiece = 64 * 1024;

// Calls body(rows, matrix, M, row) for blocks of M rows of y, from `row` on,
// that meet one matrix of weights; `rows` holds theirs of x.
template <typename Fn>
void by_blocks(const MatmulProblem& problem,
               const Form& form,
               const void* x,
               Fn&& body) {
  MatmulProblem p = merge_rows(problem);
  Rows rows(form, std::min(p.M, kMaxRows));
  for (int b = 0; b < p.batch.size; ++b) {
    for (int m = 0; m < p.M; m += kMaxRows) {
      int M = std::min(kMaxRows, p.M - m);
      size_t row = size_t(b) * p.M + m;
      rows.fill(at(x, row * form.in(), p.dtype), M);
      body(rows, b / p.batch.repeat % p.batch.count, M, row);
    }
  }
}

// Where a block of rows of y, and what is added to it, lie.
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

// A product of few columns: parts of k are pieces of work, too.
void multiply_in_depth(const Form& form,
                       const Rows& rows,
                       const Weights& w,
                       int M,
                       const Addends& to) {
  static_assert(kDepth % kBlockK == 0);
  int parts = (form.K + form.depth - 1) / form.depth;
  int ranges = (form.N + form.columns - 1) / form.columns;
  size_t count = size_t(M) * form.N;
  Floats sums = make_floats(parts * count);
  parallel_for(parts * ranges, [&](int i) {
    int begin = i % ranges * form.columns, k = i / ranges * form.depth;
    Weights part = w;
    part.columns = {k, std::min(form.K, k + form.depth)};
    Range range{begin, std::min(form.N, begin + form.columns)};
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

CpuProfile profile() {
  return {thread_count(), isa().kernels.few_rows};
}

void matmul(const MatmulProblem& problem,
            const MatmulOperands& o,
            Activations activations) {
  Form form(problem, activations);
  by_blocks(
      problem, form, o.x, [&](const Rows& rows, int matrix, int M, size_t row) {
        Weights w = form.matrix(o.weights, matrix);
        Addends to{form, problem, o, row};
        if (form.transpose && form.depth < form.K) {
          multiply_in_depth(form, rows, w, M, to);
        } else if (!problem.epilogue.any()) {
          int any = std::numeric_limits<int>::max();
          by_ranges(form, any, [&](Range range) {
            rows.multiply(w, 0, M, range, form.dtype, to.y(0, 0));
          });
        } else {
          by_ranges(form, columns_of_sums(M), [&](Range range) {
            Sums sums(form, rows, w, 0, M, range);
            for (int m = 0; m < M; ++m) {
              sums.store(m,
                         to.bias(range.begin),
                         to.residual(m, range.begin),
                         static_cast<uint8_t*>(to.y(m, range.begin)));
            }
          });
        }
      });
}

void swiglu_matmul(const MatmulProblem& problem,
                   const SwigluOperands& o,
                   Activations activations) {
  Form form(problem, activations);
  by_blocks(
      problem, form, o.x, [&](const Rows& rows, int matrix, int M, size_t row) {
        Weights gate = form.matrix(o.gate, matrix);
        Weights up = form.matrix(o.up, matrix);
        by_ranges(form, columns_of_sums(2 * M), [&](Range range) {
          GatedSums sums(form, rows, gate, up, 0, M, range);
          for (int m = 0; m < M; ++m) {
            size_t to = (row + m) * form.N + range.begin;
            sums.store(m, at(o.y, to, form.dtype));
          }
        });
      });
}

void dequantize(const DequantizeProblem& problem,
                const QuantizedOperands& o,
                void* out) {
  const Kernels& kernels = isa().kernels;
  Weights weights{reinterpret_cast<const uint8_t*>(o.w),
                  static_cast<const uint8_t*>(o.scales),
                  static_cast<const uint8_t*>(o.biases),
                  problem.rows,
                  problem.K,
                  problem.format,
                  problem.scale_dtype};
  int step = std::max(1, kDequantizePiece / problem.K);
  parallel_for((problem.rows + step - 1) / step, [&](int i) {
    Range rows{i * step, std::min(problem.rows, (i + 1) * step)};
    kernels.dequantize(weights, rows, problem.dtype, out);
  });
}

}  // namespace nibble::cpu

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
        size_t first = row * form.out();
        if (!problem.epilogue.any()) {
          int any = std::numeric_limits<int>::max();
          by_ranges(form, any, [&](Range range) {
            rows.multiply(
                w, 0, M, range, form.dtype, at(o.y, first, form.dtype));
          });
          return;
        }
        auto addend = [&](bool there, const void* p, size_t begin) {
          return there ? at(p, begin, form.dtype) : nullptr;
        };
        by_ranges(form, columns_of_sums(M), [&](Range range) {
          const uint8_t* bias =
              addend(problem.epilogue.bias, o.bias, range.begin);
          Sums sums(form, rows, w, 0, M, range);
          for (int m = 0; m < M; ++m) {
            size_t to = first + size_t(m) * form.N + range.begin;
            sums.store(m,
                       bias,
                       addend(problem.epilogue.residual, o.residual, to),
                       at(o.y, to, form.dtype));
          }
        });
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

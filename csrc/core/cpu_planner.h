// Problem -> CpuPlan: the planner's half for the native CPU backend, and the
// only place that holds a heuristic of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/core/problem.h"

namespace nibble {

// A call of fewer products than this is done by the calling thread: below,
// handing work over (1 to 2 us when the workers are awake) costs more than
// half the work takes (some 20 products a ns).
inline constexpr int64_t kParallelProducts = 64 * 1024;
// Of x @ w_hat, where a thread has to wake for one product between MLX's own
// operations: 256 x 512 takes 15 us alone and up to 25 shared out.
inline constexpr int64_t kParallelProductsOfColumns = 256 * 1024;

// What the planner may know of a CPU.
struct CpuProfile {
  int threads = 1;
  // Up to this number of rows of x, weights are best decoded on the way: a
  // constant of the instruction set.
  int few_rows = 4;

  bool operator==(const CpuProfile&) const = default;
};

// How the CPU backend computes a product. Only `int8` and `depth` have a part
// in its bits; and `depth` depends on the weights alone, so that these are the
// same with all numbers of rows and threads.
struct CpuPlan {
  // Activations are rounded to 8 bits.
  bool int8 = false;
  // Exact products of up to this number of rows decode weights on the way; of
  // more, once, into a panel.
  int few_rows = 0;
  // Columns of y in a piece of work.
  int columns = 0;
  // And places of k, if that is not all of them: their sums are added in order.
  int depth = 0;

  bool operator==(const CpuPlan&) const = default;
};

// The plan of y = x @ w_hat^T or x @ w_hat, whose choice, if it is the name of
// one of the candidates, is followed.
CpuPlan plan_cpu(const MatmulProblem& problem,
                 const CpuProfile& cpu,
                 bool int8);

// Every plan that may be the fastest on some CPU, the one that plan_cpu() takes
// by itself first: what a tuner times. Where `int8` is allowed, exact ones are
// among them, unless the problem is batch-invariant.
std::vector<CpuPlan> candidates(const MatmulProblem& problem,
                                const CpuProfile& cpu,
                                bool int8);

// "decode_n96", "panel_n96", "int8_n96": the way of a problem's rows, and the
// columns of a piece.
std::string cpu_plan_name(const CpuPlan& plan, const MatmulProblem& problem);

// Columns of y that make up a piece, if `products` multiplications of a matrix
// with `out` columns are to be shared out among `pieces`.
int piece_columns(int out, int64_t products, int pieces, bool transpose);

// Fewer weight rows are never worth a piece, and whole tiles are best.
inline constexpr int kMinRows = 32;
// Nor fewer columns of a product that is not transposed, whose rows are decoded
// piece by piece: a block of the kernels.
inline constexpr int kMinColumns = 256;
// Pieces of work for each thread, so that one that is held up delays little.
inline constexpr int kPiecesPerThread = 4;
// So few columns of y make fewer pieces than most machines have cores.
inline constexpr int kNarrow = 2 * kMinRows;
// Then k is shared out, too, in parts of this: 32 rows of it take 4 bits some 3
// us, more than a hand-over.
inline constexpr int kDepth = 2048;
// Columns of y are shared out in multiples of this.
constexpr int column_unit(bool transpose) {
  return transpose ? kMinRows : kMinColumns;
}

// The single statement of what makes a plan valid for a problem.
constexpr bool supports(const CpuPlan& plan, const MatmulProblem& p) {
  return plan.columns > 0 && plan.columns % column_unit(p.transpose) == 0 &&
         plan.few_rows >= 0 && (!plan.int8 || p.transpose) &&
         (plan.depth == p.K ||
          (p.transpose && plan.depth > 0 && plan.depth % kDepth == 0));
}

}  // namespace nibble

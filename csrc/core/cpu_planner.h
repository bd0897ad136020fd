// Problem -> plan, for the native CPU backend. This is the only place that
// holds a heuristic of it. Limits that follow from the code of a kernel, as
// register tiles and cache blocks, are beside the kernel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/core/cpu_plan.h"
#include "csrc/core/problem.h"

namespace nibble {

// A call of fewer products than this runs on the calling thread. Below,
// a hand-over to another thread (1 to 2 us when it is awake) costs more than
// half of the work takes (some 20 products a ns).
inline constexpr int64_t kParallelProducts = 64 * 1024;
// The same for x @ w_hat. There a thread has to wake up for one product between
// MLX's own operations: 256 x 512 takes 15 us on one thread and up to 25 on
// several.
inline constexpr int64_t kParallelProductsOfColumns = 256 * 1024;
// The same for elements of a layer such as RMSNorm or SwiGLU: a core computes
// some 4 to 8 of them a ns. A chunk has this number of elements. It has a part
// in the bits of log-sum-exp, which adds chunks of long rows in order.
inline constexpr int64_t kParallelElements = 32 * 1024;

// A chunk has at least this number of weight rows, and whole tiles are best.
inline constexpr int kMinRows = 32;
// The least number of columns in a chunk of a product that is not transposed:
// a block of its kernel, which decodes weight rows chunk by chunk.
inline constexpr int kMinColumns = 256;
// Chunks for each thread, so that a thread that is delayed delays little.
inline constexpr int kChunksPerThread = 4;
// Fewer columns of y than this make fewer chunks than most machines have cores.
inline constexpr int kNarrow = 2 * kMinRows;
// Then k is split too, into chunks of this length: 32 rows of it take 4 bits
// some 3 us, more than a hand-over.
inline constexpr int kDepth = 2048;
// The largest block of rows: decoding is long paid for. A kernel's limit.
inline constexpr int kBlockRows = 256;
// Codes of other widths than 2 and 4 bits take longer to decode, so that they
// are decoded again for fewer rows and read packed for more. 512 x 4096,
// AVX-512, one thread of a Xeon: 8 rows of 5 bits take 0.44 ms either way and
// 0.37 packed, 12 rows 0.52 and 0.50, 24 rows 1.03 and 0.81; 24 rows of 8 bits
// 1.69 and 0.85.
inline constexpr int kSlowlyDecodedRows = 8;
// Keys of a range are a multiple of this: a block of the attention kernel.
inline constexpr int kKeyUnit = 128;

// The number of columns of y in a chunk is a multiple of this.
constexpr int column_unit(bool transpose) {
  return transpose ? kMinRows : kMinColumns;
}

// Returns the plan of y = x @ w_hat^T or x @ w_hat. Activations are rounded no
// more than `allowed`, except float16 and bfloat16, which may become integers
// of 16 bits. If the problem's choice is the name of a candidate, it is that
// candidate.
CpuPlan plan_cpu(const MatmulProblem& problem,
                 const CpuProfile& cpu,
                 Activations allowed);

CpuGatherPlan plan_cpu(const GatherProblem& problem,
                       const CpuProfile& cpu,
                       Activations allowed);

CpuDequantizePlan plan_cpu(const DequantizeProblem& problem);

CpuAttentionPlan plan_cpu(const AttentionShape& shape, const CpuProfile& cpu);

// Returns every plan that may be the fastest on some CPU, for a tuner to
// measure. The first is the one that plan_cpu() returns without a choice. If
// int8 is allowed, plans without it are among them, unless the problem is
// batch-invariant.
std::vector<CpuPlan> candidates(const MatmulProblem& problem,
                                const CpuProfile& cpu,
                                Activations allowed);

// Returns "decode_n96", "panel_n96", "int16_n96", "int8_n96", "bfloat16_n96",
// "bfloat16_by_pair_n96" or "bfloat16_pair_n96": how the problem's rows are
// computed, and the columns of a chunk.
std::string cpu_plan_name(const CpuPlan& plan, const MatmulProblem& problem);

// Returns the columns of y in a chunk, if a matrix with `out` columns is to be
// split into `chunks` for `products` multiplications in all.
int chunk_columns(int out, int64_t products, int chunks, bool transpose);

// Returns the most columns in a chunk that keeps this number of rows of fp32
// sums before they are rounded.
int columns_of_sums(int rows);

// The facts about a wave of gathered products that its indices decide.
struct CpuWave {
  int groups;
  int rows;      // in all groups
  int largest;   // rows of the largest group
  int matrices;  // of sums: 2 for SwiGLU
};

// Returns the columns of y in a chunk of a wave.
int chunk_columns(const GatherProblem& problem,
                  const CpuGatherPlan& plan,
                  const CpuWave& wave);

// True if a plan is valid for a problem. Nothing else states it.
constexpr bool supports(const CpuPlan& plan, const MatmulProblem& p) {
  return plan.columns > 0 && plan.columns % column_unit(p.transpose) == 0 &&
         plan.few_rows >= 0 && plan.block_rows > 0 &&
         plan.block_rows <= kBlockRows && (plan.exact() || p.transpose) &&
         (plan.depth == p.K ||
          (p.transpose && plan.depth > 0 && plan.depth % kDepth == 0));
}

}  // namespace nibble

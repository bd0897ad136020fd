#include "csrc/core/cpu_planner.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace nibble {
namespace {

// Chunks for each thread that a tuner tries. The machine decides whether a
// delayed thread costs more than many hand-overs. 0: the calling thread alone.
constexpr int kTriedChunks[] = {1, 16, 0};
// The tuner tries the calling thread alone below this many times
// kParallelProducts.
constexpr int kTriedAlone = 16;
// The panel and decoding on the way are both tried up to this many times the
// rows at which the planner switches from one to the other.
constexpr int kTriedRows = 4;

// fp32 values of x that leave room for weights in a first-level cache: 32 KB.
// While all of x stays there, weight rows are best read whole.
constexpr int kFirstLevelFloats = 8 * 1024;
// Chunks in which a block of rows of x is prepared, if a hand-over pays.
constexpr int kPreparedChunks = 8;
// Rows in a chunk of their preparation for gathered products.
constexpr int kPreparedRows = 16;
// fp32 sums that a thread keeps before they are rounded: 256 KB, a part of any
// second-level cache.
constexpr int kSums = 64 * 1024;
// Rows that are prepared together for gathered products. Their memory is
// bounded, and several groups share the threads.
constexpr int kWaveRows = 2 * kBlockRows;
// Dequantized codes in a chunk.
constexpr int kDequantizeChunk = 64 * 1024;

// Rows of scores in a chunk: 64 KB with a block of 128 keys.
constexpr int kScoreRows = 128;
// Keys are split among threads only in ranges of at least this length.
constexpr int kMinSplit = 2 * kKeyUnit;
// The length of ranges where no bit may depend on the split. It is small enough
// for two threads from 1024 keys on; otherwise 512 keys are the least to split.
constexpr int kFixedSplit = 4 * kKeyUnit;
// Up to this number of rows for each matrix, E2M1 is multiplied as integers.
// 4096 x 4096, repacked, two cores of a Xeon, in ms: 1 row of mxfp4 0.31
// against 0.46 in bfloat16, 2 rows 0.41 against 0.53, 4 rows 0.57 against 0.54,
// 8 rows 0.98 against 0.72.
constexpr int kFewFloatRows = 2;
// From this number of rows for each matrix, integer codes are multiplied in
// bfloat16: with one for x and weights, with two for weights, and with two for
// both, for groups of 32, 64 and 128. Integers have work for each group. 2048 x
// 8192, 4 bits, repacked, two cores of a Xeon: 32, 64 and 256 rows of the first
// form take 0.86, 1.0 and 0.97 times as long as int8, 256 rows in groups of 32
// 0.42. The second form takes 0.68 times as long as int16 with 256 rows in
// groups of 64, the third 1.02.
constexpr int kNever = std::numeric_limits<int>::max();
constexpr int kTileRows[3][3] = {
    {32, 64, 256}, {48, 96, 192}, {64, kNever, kNever}};
// Register tiles of queries whose scores are dot products with rows of keys as
// they lie. To transpose the keys first costs about as much as 16 rows.
constexpr int kQueryTiles = 4;

int64_t products_of(const MatmulProblem& p) {
  return int64_t{p.M} * p.N * p.K;
}

bool is_decoded_slowly(const QuantFormat& format) {
  return format.info().element == Element::kInteger && format.bits != 2 &&
         format.bits != 4;
}

template <typename Problem>
int out_of(const Problem& p) {
  return p.transpose ? p.N : p.K;
}

int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// The rows of x that meet one matrix; those of an expert on average.
int rows_of(const MatmulProblem& p) {
  return p.M;
}

int rows_of(const GatherProblem& p) {
  return static_cast<int>(int64_t{p.B} * p.M / std::max(1, p.experts));
}

// The rounding of activations to bfloat16. One is exact for its own type, and a
// pair for float16. A pair is within half a step of 16-bit integers, one within
// half a step of int8. Weights of integer codes are rounded as much as x may
// be.
template <typename Problem>
Activations bfloat_activations(const Problem& p, Activations allowed) {
  if (allowed == Activations::kInt8) return Activations::kBfloat16;
  if (p.dtype == Dtype::kBFloat16) {
    return p.format.has_float_codes() ? Activations::kBfloat16
                                      : Activations::kBfloat16ByPair;
  }
  bool pair = p.dtype == Dtype::kFloat16 || allowed == Activations::kInt16;
  return pair ? Activations::kBfloat16Pair : Activations::kExact;
}

// True if rows are multiplied in bfloat16. Codes that fit into integers take
// less time to decode as such, so few rows are not.
template <typename Problem>
bool multiplies_bfloat16(const Problem& p,
                         const CpuProfile& cpu,
                         Activations rounded) {
  if (!cpu.bfloat16 || rounded == Activations::kExact) return false;
  if (p.format.has_float_codes()) {
    return p.batch_invariant || !p.format.multiplies_integers() ||
           rows_of(p) > kFewFloatRows;
  }
  int form =
      static_cast<int>(rounded) - static_cast<int>(Activations::kBfloat16);
  int group = std::countr_zero(static_cast<unsigned>(p.format.group_size) / 32);
  return !p.batch_invariant && rows_of(p) >= kTileRows[form][group];
}

// float16 and bfloat16 are rounded more than integers of 16 bits are, with
// their step for each group; docs/reference/numerics.md has the bound.
template <typename Problem>
Activations activations(const Problem& p,
                        const CpuProfile& cpu,
                        Activations allowed) {
  if (!p.transpose) return Activations::kExact;
  Activations rounded = bfloat_activations(p, allowed);
  if (multiplies_bfloat16(p, cpu, rounded)) return rounded;
  if (!p.format.multiplies_integers()) return Activations::kExact;
  if (allowed == Activations::kInt8) return allowed;
  bool halves = p.dtype != Dtype::kFloat32 || allowed == Activations::kInt16;
  return cpu.int16 && halves ? Activations::kInt16 : Activations::kExact;
}

// `rows` is the number of rows that are prepared together, `chunk` that of
// a chunk if a hand-over pays.
template <typename Problem>
CpuKernelPlan kernel_plan(const Problem& p,
                          const CpuProfile& cpu,
                          Activations allowed,
                          int rows,
                          int chunk) {
  CpuKernelPlan plan;
  plan.activations = activations(p, cpu, allowed);
  plan.few_rows = cpu.few_rows;
  plan.whole_rows = p.transpose ? kFirstLevelFloats / p.K : 0;
  // Products in bfloat16 read packed weights as they lie in any case. Exact
  // ones have no kernel for packed codes that are no integers.
  int exact_rows = p.format.multiplies_integers() ? cpu.packed_rows : 0;
  int packed_rows[] = {
      exact_rows, cpu.packed_int16_rows, cpu.packed_int8_rows, 0, 0, 0};
  plan.packed_rows = packed_rows[static_cast<int>(plan.activations)];
  if (plan.exact() && is_decoded_slowly(p.format)) {
    plan.few_rows = std::min(plan.few_rows, kSlowlyDecodedRows);
    plan.packed_rows = std::max(plan.packed_rows, kSlowlyDecodedRows);
  }
  int64_t values = int64_t{rows} * (p.transpose ? p.K : p.N);
  plan.prepared_rows =
      values < kParallelProducts ? rows : std::min(rows, chunk);
  return plan;
}

CpuPlan default_plan(const MatmulProblem& p,
                     const CpuProfile& cpu,
                     Activations allowed) {
  int rows = std::min(p.M, kBlockRows);
  return {kernel_plan(p, cpu, allowed, rows, ceil_div(rows, kPreparedChunks)),
          rows,
          chunk_columns(out_of(p),
                        products_of(p),
                        kChunksPerThread * cpu.threads,
                        p.transpose),
          p.transpose && p.N <= kNarrow && p.K >= 2 * kDepth ? kDepth : p.K};
}

}  // namespace

int chunk_columns(int out, int64_t products, int chunks, bool transpose) {
  int64_t least = transpose ? kParallelProducts : kParallelProductsOfColumns;
  int unit = column_unit(transpose);
  int columns = products < least ? out : ceil_div(out, chunks);
  return ceil_div(columns, unit) * unit;
}

int columns_of_sums(int rows) {
  return std::max(kMinRows, kSums / rows / kMinRows * kMinRows);
}

int chunk_columns(const GatherProblem& p,
                  const CpuGatherPlan& plan,
                  const CpuWave& wave) {
  int even = chunk_columns(out_of(p),
                           int64_t{wave.rows} * p.N * p.K,
                           ceil_div(plan.chunks, wave.groups),
                           p.transpose);
  int unit = column_unit(p.transpose);
  int most = columns_of_sums(wave.matrices * wave.largest) / unit * unit;
  return std::min(even, std::max(unit, most));
}

std::vector<CpuPlan> candidates(const MatmulProblem& problem,
                                const CpuProfile& cpu,
                                Activations allowed) {
  MatmulProblem p = merge_rows(problem);
  CpuPlan first = default_plan(p, cpu, allowed);
  std::vector<CpuPlan> ways{first};
  bool several = p.transpose && p.M > 1 && p.M <= kTriedRows * cpu.few_rows;
  if (first.exact() && several) {
    ways.push_back(first);
    ways.back().few_rows = p.M <= first.few_rows ? 0 : p.M;
  }
  if (first.activations == Activations::kInt8 && !p.batch_invariant) {
    ways.push_back(default_plan(p, cpu, Activations::kExact));
  }
  std::vector<CpuPlan> all = ways;
  int64_t products = products_of(p);
  for (const CpuPlan& way : ways) {
    for (int each : kTriedChunks) {
      bool parallel = products >= kParallelProducts;
      bool alone = each == 0 && products < kTriedAlone * kParallelProducts;
      if (!parallel || (each == 0 && !alone)) {
        continue;
      }
      CpuPlan plan = way;
      plan.columns = chunk_columns(
          out_of(p), products, std::max(1, each * cpu.threads), p.transpose);
      bool known = std::find(all.begin(), all.end(), plan) != all.end();
      if (!known && supports(plan, p)) {
        all.push_back(plan);
      }
    }
  }
  return all;
}

CpuPlan plan_cpu(const MatmulProblem& problem,
                 const CpuProfile& cpu,
                 Activations allowed) {
  if (!problem.choice.empty()) {
    for (const CpuPlan& plan : candidates(problem, cpu, allowed)) {
      if (cpu_plan_name(plan, problem) == problem.choice) {
        return plan;
      }
    }
  }
  return default_plan(merge_rows(problem), cpu, allowed);
}

CpuGatherPlan plan_cpu(const GatherProblem& p,
                       const CpuProfile& cpu,
                       Activations allowed) {
  int rows = static_cast<int>(std::min<int64_t>(int64_t{p.B} * p.M, kWaveRows));
  return {kernel_plan(p, cpu, allowed, rows, kPreparedRows),
          kBlockRows,
          rows,
          kChunksPerThread * cpu.threads};
}

CpuDequantizePlan plan_cpu(const DequantizeProblem& p) {
  return {std::max(1, kDequantizeChunk / p.K)};
}

CpuAttentionPlan plan_cpu(const AttentionShape& p, const CpuProfile& cpu) {
  CpuAttentionPlan plan;
  plan.positions = std::clamp(kScoreRows / (p.heads / p.kv_heads), 1, p.L);
  plan.blocks = ceil_div(p.L, plan.positions);
  int units = p.B * p.kv_heads * plan.blocks;
  if (p.batch_invariant) {
    plan.split_keys = kFixedSplit;
    plan.few_queries = std::numeric_limits<int>::max();
  } else {
    int splits = std::clamp(
        ceil_div(2 * cpu.threads, units), 1, std::max(1, p.S / kMinSplit));
    plan.split_keys = ceil_div(ceil_div(p.S, splits), kKeyUnit) * kKeyUnit;
    plan.few_queries = kQueryTiles * cpu.tile_rows;
  }
  plan.splits = ceil_div(p.S, plan.split_keys);
  plan.chunks = units * plan.splits;
  int64_t products = int64_t{p.B} * p.heads * p.L * p.S * (int64_t{p.D} + p.Dv);
  plan.parallel = products >= kParallelProducts;
  return plan;
}

std::string cpu_plan_name(const CpuPlan& plan, const MatmulProblem& problem) {
  bool few = merge_rows(problem).M <= plan.few_rows;
  const char* ways[] = {few ? "decode" : "panel",
                        "int16",
                        "int8",
                        "bfloat16",
                        "bfloat16_by_pair",
                        "bfloat16_pair"};
  return ways[static_cast<int>(plan.activations)] + std::string("_n") +
         std::to_string(plan.columns);
}

}  // namespace nibble

#include "csrc/core/cpu_planner.h"

#include <algorithm>

namespace nibble {
namespace {

// Pieces for each thread that a tuner tries: whether a thread that is held up
// costs more than many hand-overs is the machine's own. 0: no hand-over at all.
constexpr int kTriedPieces[] = {1, 16, 0};
// Of so many times the least that is shared out, a tuner tries not to.
constexpr int kTriedAlone = 16;
// The panel and decoding on the way are both tried up to this many times the
// rows at which the one usually takes over from the other.
constexpr int kTriedRows = 4;

int64_t products_of(const MatmulProblem& p) {
  return int64_t{p.M} * p.N * p.K;
}

int out_of(const MatmulProblem& p) {
  return p.transpose ? p.N : p.K;
}

CpuPlan default_plan(const MatmulProblem& p, const CpuProfile& cpu, bool int8) {
  return {int8 && p.transpose,
          cpu.few_rows,
          piece_columns(out_of(p),
                        products_of(p),
                        kPiecesPerThread * cpu.threads,
                        p.transpose),
          p.transpose && p.N <= kNarrow && p.K >= 2 * kDepth ? kDepth : p.K};
}

}  // namespace

int piece_columns(int out, int64_t products, int pieces, bool transpose) {
  int64_t least = transpose ? kParallelProducts : kParallelProductsOfColumns;
  if (products < least) {
    pieces = 1;
  }
  int columns = (out + pieces - 1) / pieces, unit = column_unit(transpose);
  return (columns + unit - 1) / unit * unit;
}

std::vector<CpuPlan> candidates(const MatmulProblem& problem,
                                const CpuProfile& cpu,
                                bool int8) {
  MatmulProblem p = merge_rows(problem);
  CpuPlan first = default_plan(p, cpu, int8);
  std::vector<CpuPlan> ways{first};
  bool several = p.transpose && p.M > 1 && p.M <= kTriedRows * cpu.few_rows;
  if (!first.int8 && several) {
    ways.push_back(first);
    ways.back().few_rows = p.M <= cpu.few_rows ? 0 : p.M;
  }
  if (first.int8 && !p.batch_invariant) {
    ways.push_back(first);
    ways.back().int8 = false;
  }
  std::vector<CpuPlan> all = ways;
  int64_t products = products_of(p);
  for (const CpuPlan& way : ways) {
    for (int each : kTriedPieces) {
      bool shared = products >= kParallelProducts;
      bool alone = each == 0 && products < kTriedAlone * kParallelProducts;
      if (!shared || (each == 0 && !alone)) {
        continue;
      }
      CpuPlan plan = way;
      plan.columns = piece_columns(
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
                 bool int8) {
  if (!problem.choice.empty()) {
    for (const CpuPlan& plan : candidates(problem, cpu, int8)) {
      if (cpu_plan_name(plan, problem) == problem.choice) {
        return plan;
      }
    }
  }
  return default_plan(merge_rows(problem), cpu, int8);
}

std::string cpu_plan_name(const CpuPlan& plan, const MatmulProblem& problem) {
  bool few = merge_rows(problem).M <= plan.few_rows;
  const char* way = plan.int8 ? "int8" : few ? "decode" : "panel";
  return std::string(way) + "_n" + std::to_string(plan.columns);
}

}  // namespace nibble

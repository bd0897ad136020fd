// Which candidate was measured to be the fastest, problem by problem: a table
// that the planner looks at before its heuristics.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>

#include "csrc/core/problem.h"

namespace nibble {

// The choice that leaves a product to MLX's own op.
inline constexpr std::string_view kLeaveToMlx = "mlx";

// Rows of the last class, and of all beyond: more rows are more of the same.
inline constexpr int kLastRowClass = 512;

// The numbers of rows that share a choice: 1, 2, 3 and 4, 5 to 8, ... Returns
// the largest of them, which is what is measured.
constexpr int row_class(int M) {
  int most = 1;
  while (most < M && most < kLastRowClass) {
    most *= 2;
  }
  return most;
}

// Of products x @ w_hat^T whose weights are one matrix.
class Tuning {
 public:
  // `choice` is a candidate's name, or kLeaveToMlx, for all problems of these
  // shapes and types whose rows are of the same class.
  void put(const MatmulProblem& problem, bool int8, std::string choice);

  // Empty where nothing is known. Lives as long as this table.
  std::string_view find(const MatmulProblem& problem, bool int8) const;

 private:
  struct Key {
    int rows, N, K;
    Dtype dtype, scale_dtype;
    QuantFormat format;
    bool int8;

    Key(const MatmulProblem& p, bool int8);
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  std::unordered_map<Key, std::string, Hash> choices_;
};

}  // namespace nibble

// A table of the fastest measured candidate for each problem. The planner looks
// at it before its heuristics.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>

#include "csrc/core/problem.h"

namespace nibble {

// The choice that leaves a product to MLX's own operation.
inline constexpr std::string_view kLeaveToMlx = "mlx";

// The largest number of rows of the last class. Larger numbers share its
// choice: their work differs in amount only.
inline constexpr int kLastRowClass = 512;

// Returns the largest number of rows that shares a choice with M, the one that
// is measured. The classes are 1, 2, 3 to 4, 5 to 8, ...
constexpr int row_class(int M) {
  int most = 1;
  while (most < M && most < kLastRowClass) {
    most *= 2;
  }
  return most;
}

// The choices for products x @ w_hat^T whose weights are one matrix.
class Tuning {
 public:
  // Stores `choice`, a candidate's name or kLeaveToMlx, for all problems of
  // these shapes and types whose rows are in the same class.
  void put(const MatmulProblem& problem, bool int8, std::string choice);

  // Returns the choice, or an empty view if there is none. It lives as long as
  // this table.
  std::string_view find(const MatmulProblem& problem, bool int8) const;

 private:
  struct Key {
    int rows, N, K;
    Types types;
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

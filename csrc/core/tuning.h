// A table of the fastest measured candidate for each problem. The planner looks
// at it before its heuristics.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include "csrc/core/problem.h"

namespace nibble {

// The choice that leaves a product to MLX's own operation.
inline constexpr std::string_view kLeaveToMlx = "mlx";
// The choice of the planner's own candidate. It says that MLX's operation was
// measured and is not faster.
inline constexpr std::string_view kOurs = "ours";

// The largest number of rows of each class that shares a choice: the one that
// is measured. Larger numbers share the last class's choice: their work differs
// in amount only.
inline constexpr int kCpuRowClasses[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
// Those of the planner's table for GPUs, and one for prompts.
inline constexpr int kGpuRowClasses[] = {1, 5, 8, 16, 32, 128, 512};

constexpr std::span<const int> row_classes(bool gpu) {
  return gpu ? std::span<const int>(kGpuRowClasses) : kCpuRowClasses;
}

// The choices for products x @ w_hat^T whose weights are one matrix, and for
// those of single rows that choose a matrix (M = 1; their number is B).
class Tuning {
 public:
  // `complete`: a product without a choice is left to MLX.
  explicit Tuning(bool gpu, bool complete = false)
      : gpu_(gpu), complete_(complete) {}

  // Stores a candidate's name, kOurs or kLeaveToMlx for all problems of these
  // shapes and types whose rows are in the same class.
  void put(const MatmulProblem& problem, bool int8, std::string choice);
  void put(const GatherProblem& problem, std::string choice);

  // Returns the choice, or an empty view if there is none. It lives as long as
  // this table.
  std::string_view find(const MatmulProblem& problem, bool int8) const;
  std::string_view find(const GatherProblem& problem) const;

  // True if a complete table leaves no number of rows of such a problem to MLX.
  bool ours_for_any_rows(MatmulProblem problem) const;

  bool gpu() const { return gpu_; }
  bool complete() const { return complete_; }

 private:
  struct Key {
    int rows, N, K, experts;
    bool sorted;
    Types types;
    bool int8;

    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  Key key(const MatmulProblem& p, bool int8) const;
  Key key(const GatherProblem& p) const;
  int row_class(int rows) const;
  std::string_view find(const Key& key) const;

  bool gpu_, complete_;
  std::unordered_map<Key, std::string, Hash> choices_;
};

}  // namespace nibble

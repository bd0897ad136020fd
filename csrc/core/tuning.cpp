#include "csrc/core/tuning.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace nibble {

int Tuning::row_class(int rows) const {
  auto classes = row_classes(gpu_);
  auto found = std::ranges::lower_bound(classes, rows);
  return found == classes.end() ? classes.back() : *found;
}

Tuning::Key Tuning::key(const MatmulProblem& p, bool int8) const {
  return {row_class(p.M), p.N, p.K, 0, false, p, int8};
}

Tuning::Key Tuning::key(const GatherProblem& p) const {
  return {row_class(p.B), p.N, p.K, p.experts, p.sorted, p, false};
}

size_t Tuning::Hash::operator()(const Key& key) const {
  uint64_t hash = 0;
  for (int field : {key.rows,
                    key.N,
                    key.K,
                    key.experts,
                    static_cast<int>(key.sorted),
                    static_cast<int>(key.types.dtype),
                    static_cast<int>(key.types.scale_dtype),
                    key.types.format.bits,
                    key.types.format.group_size,
                    static_cast<int>(key.types.format.mode),
                    static_cast<int>(key.int8)}) {
    // Knuth's multiplicative hash, field by field.
    hash = (hash ^ static_cast<uint64_t>(field)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  return static_cast<size_t>(hash);
}

void Tuning::put(const MatmulProblem& problem, bool int8, std::string choice) {
  choices_.insert_or_assign(key(problem, int8), std::move(choice));
}

void Tuning::put(const GatherProblem& problem, std::string choice) {
  choices_.insert_or_assign(key(problem), std::move(choice));
}

std::string_view Tuning::find(const Key& key) const {
  auto found = choices_.find(key);
  return found == choices_.end() ? std::string_view() : found->second;
}

std::string_view Tuning::find(const MatmulProblem& problem, bool int8) const {
  MatmulProblem p = merge_rows(problem);
  bool measured = p.transpose && p.batch.size <= 1;
  return measured ? find(key(p, int8)) : std::string_view();
}

std::string_view Tuning::find(const GatherProblem& p) const {
  bool measured = p.transpose && p.M == 1;
  return measured ? find(key(p)) : std::string_view();
}

bool Tuning::ours_for_any_rows(MatmulProblem problem) const {
  if (problem.batch.count > 1) {
    return false;
  }
  problem.batch = {};
  return std::ranges::all_of(row_classes(gpu_), [&](int rows) {
    problem.M = rows;
    std::string_view choice = find(problem, false);
    return !choice.empty() && choice != kLeaveToMlx;
  });
}

}  // namespace nibble

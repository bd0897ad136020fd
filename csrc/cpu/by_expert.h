// The order in which the rows of experts' products meet their weights.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/cpu/gather.h"

namespace nibble::cpu {

// Rows that meet one expert's weights together.
struct Group {
  int expert;
  int first;  // of the rows of all groups
  int count;
};

// The rows of all products in the order of their experts. A group has at most
// `block_rows` rows.
class ByExpert {
 public:
  ByExpert(const GatherProblem& p, int block_rows, const Indices& indices)
      : M_(p.M) {
    std::vector<int> begin(p.experts + 1, 0);
    auto expert_of = [&](int b) {
      return std::min<uint32_t>(indices.rhs[b], p.experts - 1);
    };
    for (int b = 0; b < p.B; ++b) {
      ++begin[expert_of(b) + 1];
    }
    for (int e = 0; e < p.experts; ++e) {
      begin[e + 1] += begin[e];
      int end = begin[e + 1] * M_;
      for (int r = begin[e] * M_; r < end; r += block_rows) {
        groups_.push_back({e, r, std::min(block_rows, end - r)});
      }
    }
    products_.resize(p.B);
    for (int b = 0; b < p.B; ++b) {
      products_[begin[expert_of(b)]++] = b;
    }
    for (int b = 0; b < p.B; ++b) {
      sources_.push_back(std::min<uint32_t>(indices.lhs[b], p.rows - 1));
    }
  }

  const std::vector<Group>& groups() const { return groups_; }

  // The place of row r in x, and in y.
  size_t source(int r) const {
    return size_t(sources_[products_[r / M_]]) * M_ + r % M_;
  }
  size_t target(int r) const { return size_t(products_[r / M_]) * M_ + r % M_; }

  // True if a group's rows are neighbours in y. Targets of a group rise.
  bool together(const Group& g) const {
    return target(g.first + g.count - 1) - target(g.first) ==
           size_t(g.count) - 1;
  }

 private:
  int M_;
  std::vector<int> products_;  // by expert
  std::vector<int> sources_;   // of product b, in x
  std::vector<Group> groups_;
};

}  // namespace nibble::cpu

#include "csrc/cpu/gather.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "csrc/cpu/finish.h"
#include "csrc/cpu/kernels.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// Rows that are made ready at a time: their memory is bounded, and some groups
// share out the threads.
constexpr int kWaveRows = 2 * kMaxRows;

// Rows that meet one expert's weights together.
struct Group {
  int expert;
  int first;  // of the rows of all groups
  int count;  // at most kMaxRows
};

// The rows of all products in the order of their experts.
class ByExpert {
 public:
  ByExpert(const GatherProblem& p, const Indices& indices) : M_(p.M) {
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
      for (int r = begin[e] * M_; r < end; r += kMaxRows) {
        groups_.push_back({e, r, std::min(kMaxRows, end - r)});
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

  // Where row r comes from in x, and where it goes to in y.
  size_t source(int r) const {
    return size_t(sources_[products_[r / M_]]) * M_ + r % M_;
  }
  size_t target(int r) const { return size_t(products_[r / M_]) * M_ + r % M_; }

  // Whether a group's rows are neighbours in y. Targets of a group rise.
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

// Calls body(rows, offset, group, range) so that the ranges make up all columns
// of all groups; row r of a group is row r - offset of `rows`.
template <typename Fn>
void by_groups(const ByExpert& order,
               const Form& form,
               const void* x,
               int matrices,
               Fn&& body) {
  const std::vector<Group>& groups = order.groups();
  int total = groups.back().first + groups.back().count;
  Rows rows(form, std::min(total, kWaveRows));
  for (size_t g = 0; g < groups.size();) {
    int offset = groups[g].first;
    std::vector<Group> wave;
    int most = 1, end = offset;
    for (; g < groups.size() &&
           groups[g].first + groups[g].count - offset <= kWaveRows;
         ++g) {
      wave.push_back(groups[g]);
      most = std::max(most, groups[g].count);
      end = groups[g].first + groups[g].count;
    }
    int count = end - offset;
    int apiece = int64_t{count} * form.in() < kParallelProducts ? count : 16;
    parallel_for((count + apiece - 1) / apiece, [&](int i) {
      for (int r = i * apiece; r < std::min(count, (i + 1) * apiece); ++r) {
        size_t from = order.source(offset + r) * form.in();
        rows.put(r, at(x, from, form.dtype), 1);
      }
    });
    int parts = static_cast<int>(wave.size());
    int pieces = (kPiecesPerThread * thread_count() + parts - 1) / parts;
    int unit = column_unit(form.transpose);
    int step = std::min(piece_columns(form.out(),
                                      int64_t{count} * form.N * form.K,
                                      pieces,
                                      form.transpose),
                        std::max(unit, columns_of_sums(matrices * most)));
    int ranges = (form.out() + step - 1) / step;
    parallel_for(parts * ranges, [&](int i) {
      int begin = i % ranges * step;
      body(rows,
           offset,
           wave[i / ranges],
           Range{begin, std::min(form.out(), begin + step)});
    });
  }
}

}  // namespace

void gather_matmul(const GatherProblem& p,
                   const MatmulOperands& o,
                   const Indices& indices,
                   Activations activations) {
  Form form(p, activations);
  ByExpert order(p, indices);
  size_t out = form.out(), size = size_of(p.dtype);
  // Rows that are no neighbours in y are computed here first.
  Floats apart = make_floats(size_t(std::min(p.B * p.M, kWaveRows)) * out *
                             size / sizeof(float));
  by_groups(
      order,
      form,
      o.x,
      1,
      [&](const Rows& rows, int offset, const Group& g, Range range) {
        bool together = order.together(g);
        uint8_t* y =
            together ? at(o.y, order.target(g.first) * out, p.dtype)
                     : at(apart.get(), size_t(g.first - offset) * out, p.dtype);
        Weights w = form.matrix(o.weights, g.expert);
        rows.multiply(w, g.first - offset, g.count, range, p.dtype, y);
        for (int r = 0; !together && r < g.count; ++r) {
          size_t to = order.target(g.first + r) * out + range.begin;
          std::memcpy(at(o.y, to, p.dtype),
                      y + (r * out + range.begin) * size,
                      (range.end - range.begin) * size);
        }
      });
}

void gather_swiglu(const GatherProblem& p,
                   const SwigluOperands& o,
                   const Indices& indices,
                   Activations activations) {
  Form form(p, activations);
  ByExpert order(p, indices);
  by_groups(order,
            form,
            o.x,
            2,
            [&](const Rows& rows, int offset, const Group& g, Range range) {
              GatedSums sums(form,
                             rows,
                             form.matrix(o.gate, g.expert),
                             form.matrix(o.up, g.expert),
                             g.first - offset,
                             g.count,
                             range);
              for (int r = 0; r < g.count; ++r) {
                size_t to =
                    order.target(g.first + r) * form.out() + range.begin;
                sums.store(r, at(o.y, to, p.dtype));
              }
            });
}

}  // namespace nibble::cpu

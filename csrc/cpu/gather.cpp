#include "csrc/cpu/gather.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "csrc/core/cpu_planner.h"
#include "csrc/cpu/by_expert.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/sums.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// Calls body(rows, offset, group, range) so that the ranges cover all columns
// of all groups. Row r of a group is row r - offset of `rows`. `matrices` is
// the number of matrices whose sums a chunk keeps.
template <typename Fn>
void by_groups(const ByExpert& order,
               const GatherProblem& p,
               const CpuGatherPlan& plan,
               const Form& form,
               const void* x,
               int matrices,
               Fn&& body) {
  const std::vector<Group>& groups = order.groups();
  Rows rows(form, plan.wave_rows);
  for (size_t g = 0; g < groups.size();) {
    int offset = groups[g].first;
    size_t first = g;
    CpuWave wave{0, 0, 1, matrices};
    for (; g < groups.size() && wave.rows + groups[g].count <= plan.wave_rows;
         ++g) {
      ++wave.groups;
      wave.rows += groups[g].count;
      wave.largest = std::max(wave.largest, groups[g].count);
    }
    by_ranges(wave.rows, plan.prepared_rows, [&](Range range) {
      for (int r = range.begin; r < range.end; ++r) {
        size_t from = order.source(offset + r) * form.in();
        rows.put(r, at(x, from, form.dtype), 1);
      }
    });
    int step = chunk_columns(p, plan, wave);
    int ranges = (form.out() + step - 1) / step;
    parallel_for(wave.groups * ranges, [&](int i) {
      int begin = i % ranges * step;
      body(rows,
           offset,
           groups[first + i / ranges],
           Range{begin, std::min(form.out(), begin + step)});
    });
  }
}

}  // namespace

void gather_matmul(const GatherProblem& p,
                   const CpuGatherPlan& plan,
                   const MatmulOperands& o,
                   const Indices& indices) {
  Form form(p, plan);
  ByExpert order(p, plan.block_rows, indices);
  size_t out = form.out(), size = size_of(p.dtype);
  // Rows that are not neighbours in y are computed here first.
  Floats apart =
      make_floats(size_t(plan.wave_rows) * out * size / sizeof(float));
  auto group = [&](const Rows& rows, int offset, const Group& g, Range range) {
    bool together = order.together(g);
    uint8_t* y = together
                     ? at(o.y, order.target(g.first) * out, p.dtype)
                     : at(apart.get(), size_t(g.first - offset) * out, p.dtype);
    Weights w = form.matrix(o.weights, g.expert);
    rows.multiply(w, g.first - offset, g.count, range, p.dtype, y);
    for (int r = 0; !together && r < g.count; ++r) {
      size_t to = order.target(g.first + r) * out + range.begin;
      std::memcpy(at(o.y, to, p.dtype),
                  y + (r * out + range.begin) * size,
                  (range.end - range.begin) * size);
    }
  };
  by_groups(order, p, plan, form, o.x, 1, group);
}

void gather_swiglu(const GatherProblem& p,
                   const CpuGatherPlan& plan,
                   const SwigluOperands& o,
                   const Indices& indices) {
  Form form(p, plan);
  ByExpert order(p, plan.block_rows, indices);
  auto group = [&](const Rows& rows, int offset, const Group& g, Range range) {
    GatedSums sums(form,
                   rows,
                   form.matrix(o.gate, g.expert),
                   form.matrix(o.up, g.expert),
                   g.first - offset,
                   g.count,
                   range);
    for (int r = 0; r < g.count; ++r) {
      size_t to = order.target(g.first + r) * form.out() + range.begin;
      sums.store(r, at(o.y, to, p.dtype));
    }
  };
  by_groups(order, p, plan, form, o.x, 2, group);
}

}  // namespace nibble::cpu

#include "csrc/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/core/cpu_planner.h"
#include "csrc/cpu/cache_rows.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/scratch.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

static_assert(kKeyUnit % kKeyBlock == 0);

// The factor of values whose sums overflow: 2^64 of the largest still fit.
constexpr float kSmaller = 0x1p-64f;

// A block of positions of one head of keys and values.
struct Unit {
  int batch, kv_head;
  int position, positions;
};

Unit unit_at(const Attention& p, const CpuAttentionPlan& plan, int index) {
  Unit u;
  // Later positions see more keys: the longest chunks begin first.
  int block = plan.blocks - 1 - index % plan.blocks;
  u.position = block * plan.positions;
  u.positions = std::min(plan.positions, p.L - u.position);
  u.kv_head = index / plan.blocks % p.kv_heads;
  u.batch = index / plan.blocks / p.kv_heads;
  return u;
}

AttendArgs args_of(const Attention& p,
                   const AttentionOperands& o,
                   int few_queries,
                   bool leave_out,
                   const Unit& u) {
  int group = p.heads / p.kv_heads, head = u.kv_head * group;
  AttendArgs a;
  int64_t first = u.batch * p.q_strides[0] + head * p.q_strides[1] +
                  u.position * p.q_strides[2];
  a.q = {p.dtype,
         static_cast<const uint8_t*>(o.q) + first * int64_t(size_of(p.dtype)),
         p.q_strides[2],
         p.q_strides[1],
         group,
         u.positions * group};
  a.keys = rows_of(p.keys, o.keys, p.D, u.batch, u.kv_head);
  a.values = rows_of(p.values, o.values, p.Dv, u.batch, u.kv_head);
  a.mask = {p.mask, p.mask_dtype, nullptr, 0, 0};
  if (p.mask != MaskKind::kNone) {
    const int64_t* s = p.mask_strides;
    int64_t seen = u.batch * s[0] + head * s[1] + u.position * s[2];
    size_t size = p.mask == MaskKind::kBool ? 1 : size_of(p.mask_dtype);
    a.mask.data = static_cast<const uint8_t*>(o.mask) + seen * int64_t(size);
    a.mask.head_stride = s[1];
    a.mask.position_stride = s[2];
  }
  a.scale = p.scale;
  a.cap = p.cap;
  a.value_scale = 1;
  a.causal = p.causal;
  a.few_queries = few_queries;
  a.visible = p.S - p.L + u.position + 1;
  a.begin = 0;
  a.end = leave_out ? std::clamp(a.visible + u.positions - 1, 0, p.S) : p.S;
  return a;
}

// The layout of one chunk's sums.
struct Sums {
  int rows, width;
  size_t size() const { return size_t(rows) * (width + 2); }
  Attended in(float* room) const {
    size_t values = size_t(rows) * width;
    return {room, room + values, room + values + rows};
  }
};

// Adds the sums of another range of keys to row r of `a`.
void merge_row(Attended a, Attended b, int r, int width) {
  float largest = std::max(a.largest[r], b.largest[r]), keep = 1, gain = 1;
  if (b.sum[r] != 0) {
    keep = std::exp(a.largest[r] - largest);
    gain = std::exp(b.largest[r] - largest);
  }
  float *x = a.values + size_t(r) * width, *y = b.values + size_t(r) * width;
  for (int i = 0; i < width; ++i) x[i] = x[i] * keep + y[i] * gain;
  a.sum[r] = a.sum[r] * keep + b.sum[r] * gain;
  a.largest[r] = largest;
}

// A sink is one more key whose value is 0.
void add_sink(Attended a, int r, int width, float sink) {
  float largest = std::max(a.largest[r], sink);
  if (largest == -INFINITY && !std::isnan(sink)) return;
  float keep = std::exp(a.largest[r] - largest);
  float* x = a.values + size_t(r) * width;
  for (int i = 0; i < width; ++i) x[i] *= keep;
  a.sum[r] = a.sum[r] * keep + std::exp(sink - largest);
}

// Rounds row r of sums to the result.
void divide_row(const LayerKernels& kernels,
                const Attention& p,
                const AttentionOperands& o,
                const Unit& u,
                Attended sums,
                int r) {
  int group = p.heads / p.kv_heads;
  int64_t row = (int64_t{u.batch} * p.L + u.position + r / group) * p.heads +
                u.kv_head * group + r % group;
  float sum = sums.sum[r];
  // Weights of keys that are seen, and are all 0, have no quotient.
  if (sum == 0 && sums.largest[r] > -INFINITY) sum = NAN;
  kernels.divide(p.dtype,
                 sums.values + size_t(r) * whole_vectors(p.Dv),
                 sum,
                 p.Dv,
                 static_cast<uint8_t*>(o.out) + row * p.Dv * size_of(p.dtype));
}

// Adds the sinks to all sums of a unit.
void add_sinks(const Attention& p,
               const AttentionOperands& o,
               const Unit& u,
               Attended sums) {
  int group = p.heads / p.kv_heads, width = whole_vectors(p.Dv);
  for (int r = 0; o.sinks && r < u.positions * group; ++r) {
    add_sink(sums, r, width, o.sinks[u.kv_head * group + r % group]);
  }
}

// Replaces the sums of row r by quotients: those of `smaller`, of values times
// kSmaller, where a sum overflowed.
void take_smaller(Attended sums, Attended smaller, int r, int Dv) {
  float *x = sums.values + size_t(r) * whole_vectors(Dv),
        *y = smaller.values + size_t(r) * whole_vectors(Dv);
  float factor = 1 / sums.sum[r], factor_of_y = 1 / smaller.sum[r];
  for (int i = 0; i < Dv; ++i) {
    x[i] = std::isfinite(x[i]) ? x[i] * factor : y[i] * factor_of_y / kSmaller;
  }
  sums.sum[r] = 1;
}

}  // namespace

void attention(const Attention& p,
               const CpuAttentionPlan& plan,
               const AttentionOperands& o) {
  const LayerKernels& kernels = isa().layers;
  int group = p.heads / p.kv_heads;
  Sums sums{plan.positions * group, whole_vectors(p.Dv)};
  size_t scratch = kernels.attend_scratch(sums.rows, p.D, p.Dv);
  std::vector<float> partial;
  if (plan.splits > 1) partial.resize(plan.chunks * sums.size());

  bool leave_out = p.causal && may_leave_out(p, o);
  // Stores a unit. Sums of values beyond float32's range are formed once more,
  // of smaller values: the quotient may be within it.
  auto store = [&](const Unit& u, Attended all) {
    add_sinks(p, o, u, all);
    std::vector<int> overflowed;
    for (int r = 0; r < u.positions * group; ++r) {
      if (std::isfinite(all.sum[r]) && all.sum[r] > 0 &&
          !all_finite(
              Dtype::kFloat32, all.values + size_t(r) * sums.width, p.Dv)) {
        overflowed.push_back(r);
      } else {
        divide_row(kernels, p, o, u, all, r);
      }
    }
    if (overflowed.empty()) return;
    AttendArgs args = args_of(p, o, plan.few_queries, leave_out, u);
    args.value_scale = kSmaller;
    std::vector<float> room(scratch + sums.size());
    Attended smaller = sums.in(room.data() + scratch);
    kernels.attend(args, smaller, room.data());
    add_sinks(p, o, u, smaller);
    for (int r : overflowed) {
      take_smaller(all, smaller, r, p.Dv);
      divide_row(kernels, p, o, u, all, r);
    }
  };
  auto attend = [&](int chunk) {
    Unit u = unit_at(p, plan, chunk / plan.splits);
    AttendArgs args = args_of(p, o, plan.few_queries, leave_out, u);
    int split = chunk % plan.splits;
    args.begin = split * plan.split_keys;
    args.end = std::min(args.end, args.begin + plan.split_keys);
    float* room = thread_floats(scratch + sums.size());
    Attended out = sums.in(plan.splits > 1 ? &partial[chunk * sums.size()]
                                           : room + scratch);
    kernels.attend(args, out, room);
    if (plan.splits == 1) store(u, out);
  };
  if (plan.parallel) {
    parallel_for(plan.chunks, [&](int i) { attend(i); });
  } else {
    for (int i = 0; i < plan.chunks; ++i) attend(i);
  }
  if (plan.splits == 1) return;

  for (int i = 0; i < plan.chunks; i += plan.splits) {
    Unit u = unit_at(p, plan, i / plan.splits);
    Attended all = sums.in(&partial[i * sums.size()]);
    for (int s = 1; s < plan.splits; ++s) {
      Attended other = sums.in(&partial[(i + s) * sums.size()]);
      for (int r = 0; r < u.positions * group; ++r) {
        merge_row(all, other, r, sums.width);
      }
    }
    store(u, all);
  }
}

}  // namespace nibble::cpu

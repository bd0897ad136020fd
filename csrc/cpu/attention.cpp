#include "csrc/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/core/cpu_planner.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/scratch.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

static_assert(kKeyUnit % kKeyBlock == 0);

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

const uint8_t* at(const void* data, Dtype dtype, int64_t index) {
  return static_cast<const uint8_t*>(data) + index * int64_t(size_of(dtype));
}

AttendArgs args_of(const Attention& p,
                   const AttentionOperands& o,
                   int few_queries,
                   const Unit& u) {
  int group = p.heads / p.kv_heads, head = u.kv_head * group;
  AttendArgs a;
  a.q = {at(o.q,
            p.dtype,
            u.batch * p.q_strides[0] + head * p.q_strides[1] +
                u.position * p.q_strides[2]),
         p.q_strides[2],
         p.q_strides[1],
         group,
         u.positions * group};
  auto rows = [&](const void* data, const int64_t* strides) {
    return at(data, p.dtype, u.batch * strides[0] + u.kv_head * strides[1]);
  };
  a.kv = {rows(o.k, p.k_strides),
          rows(o.v, p.v_strides),
          p.k_strides[2],
          p.v_strides[2],
          p.D,
          p.Dv};
  a.mask = {p.mask, p.mask_dtype, nullptr, 0, 0};
  if (p.mask != MaskKind::kNone) {
    const int64_t* s = p.mask_strides;
    int64_t first = u.batch * s[0] + head * s[1] + u.position * s[2];
    size_t size = p.mask == MaskKind::kBool ? 1 : size_of(p.mask_dtype);
    a.mask.data = static_cast<const uint8_t*>(o.mask) + first * int64_t(size);
    a.mask.head_stride = s[1];
    a.mask.position_stride = s[2];
  }
  a.dtype = p.dtype;
  a.scale = p.scale;
  a.causal = p.causal;
  a.few_queries = few_queries;
  a.visible = p.S - p.L + u.position + 1;
  a.begin = 0;
  a.end = p.causal ? std::clamp(a.visible + u.positions - 1, 0, p.S) : p.S;
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
  float largest = std::max(a.largest[r], b.largest[r]);
  if (b.sum[r] == 0) return;
  float keep = std::exp(a.largest[r] - largest);
  float gain = std::exp(b.largest[r] - largest);
  float *x = a.values + size_t(r) * width, *y = b.values + size_t(r) * width;
  for (int i = 0; i < width; ++i) x[i] = x[i] * keep + y[i] * gain;
  a.sum[r] = a.sum[r] * keep + b.sum[r] * gain;
  a.largest[r] = largest;
}

// A sink is one more key whose value is 0.
void add_sink(Attended a, int r, int width, float sink) {
  float largest = std::max(a.largest[r], sink);
  float keep = std::exp(a.largest[r] - largest);
  float* x = a.values + size_t(r) * width;
  for (int i = 0; i < width; ++i) x[i] *= keep;
  a.sum[r] = a.sum[r] * keep + std::exp(sink - largest);
}

void store(const LayerKernels& kernels,
           const Attention& p,
           const AttentionOperands& o,
           const Unit& u,
           Attended sums) {
  int group = p.heads / p.kv_heads, width = whole_vectors(p.Dv);
  for (int r = 0; r < u.positions * group; ++r) {
    int head = u.kv_head * group + r % group;
    int64_t row =
        (int64_t{u.batch} * p.L + u.position + r / group) * p.heads + head;
    if (o.sinks) add_sink(sums, r, width, o.sinks[head]);
    kernels.divide(
        p.dtype,
        sums.values + size_t(r) * width,
        sums.sum[r],
        p.Dv,
        static_cast<uint8_t*>(o.out) + row * p.Dv * size_of(p.dtype));
  }
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

  auto attend = [&](int chunk) {
    Unit u = unit_at(p, plan, chunk / plan.splits);
    AttendArgs args = args_of(p, o, plan.few_queries, u);
    int split = chunk % plan.splits;
    args.begin = split * plan.split_keys;
    args.end = std::min(args.end, args.begin + plan.split_keys);
    float* room = thread_floats(scratch + sums.size());
    Attended out = sums.in(plan.splits > 1 ? &partial[chunk * sums.size()]
                                           : room + scratch);
    kernels.attend(args, out, room);
    if (plan.splits == 1) store(kernels, p, o, u, out);
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
    store(kernels, p, o, u, all);
  }
}

}  // namespace nibble::cpu

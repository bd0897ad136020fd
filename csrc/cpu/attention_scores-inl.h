// Masks, and the online softmax of a row of scores. V is a SIMD facade.
#pragma once

#include <limits>

#include "csrc/cpu/layers-inl.h"

namespace nibble::cpu {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();
// The largest score of a row that sees keys whose scores are all -inf. It is
// below every other finite score, and its weights are 0.
constexpr float kLowest = std::numeric_limits<float>::lowest();

// scores [count] = cap * tanh(score / cap).
template <class V>
void cap_scores(float cap, int count, float* scores) {
  typename V::F factor = V::set1(1 / cap), limit = V::set1(cap);
  for (int i = 0; i < count; i += V::kLanes) {
    typename V::F part = tanh<V>(V::mul(V::load(scores + i), factor));
    V::store(scores + i, V::mul(part, limit));
  }
}

// Masks the scores [count] of row r for the keys from `begin` on.
template <class V>
void apply_mask(
    const AttendArgs& args, int r, int begin, int count, float* scores) {
  int position = r / args.q.heads, head = r % args.q.heads;
  if (args.causal) {
    int visible = args.visible + position - begin;
    for (int i = visible < 0 ? 0 : visible; i < count; ++i) {
      scores[i] = kMasked;
    }
  }
  const Mask& mask = args.mask;
  int64_t at =
      position * mask.position_stride + head * mask.head_stride + begin;
  switch (mask.kind) {
    case MaskKind::kNone:
      return;
    case MaskKind::kBool:
      for (int i = 0; i < count; ++i) {
        scores[i] = mask.data[at + i] ? scores[i] : kMasked;
      }
      return;
    case MaskKind::kAdditive:
      alignas(64) float added[kKeyBlock];
      widen<V>(mask.dtype, mask.data + at * size_of(mask.dtype), count, added);
      for (int i = 0; i < count; ++i) scores[i] += added[i];
      return;
  }
}

// Returns the largest masked score of row r where a maximum that may pass over
// NaN found -inf: NaN, kLowest, or kMasked if the row sees none of these keys.
template <class V>
float look_closer(
    const AttendArgs& args, int r, int begin, int count, const float* scores) {
  for (int i = 0; i < count; ++i) {
    if (scores[i] != scores[i]) return scores[i];
  }
  alignas(64) float zeros[kKeyBlock] = {};
  apply_mask<V>(args, r, begin, count, zeros);
  for (int i = 0; i < count; ++i) {
    if (zeros[i] != kMasked) return kLowest;
  }
  return kMasked;
}

// Replaces the scores [count] of a row by exp(score - largest), and scales the
// sums so far to the new largest. `look_closer` is called if that is -inf.
template <class V, typename Fn>
void accumulate_row(float* scores,
                    int count,
                    Fn&& look_closer,
                    float& largest,
                    float& sum,
                    float* values,
                    int Dv) {
  int width = whole_vectors(count);
  for (int i = count; i < width; ++i) scores[i] = kMasked;
  typename V::F top = V::load(scores);
  for (int i = V::kLanes; i < width; i += V::kLanes) {
    top = V::max(top, V::load(scores + i));
  }
  float before = largest, now = V::largest(top);
  if (before > now) now = before;
  if (now == kMasked) now = look_closer();
  if (now == kMasked) {  // no key is visible so far
    for (int i = 0; i < width; ++i) scores[i] = 0;
    return;
  }
  typename V::F total = V::zero(), minus = V::set1(-now);
  for (int i = 0; i < width; i += V::kLanes) {
    typename V::F weight = exp<V>(V::add(V::load(scores + i), minus));
    total = V::add(total, weight);
    V::store(scores + i, weight);
  }
  if (before != now) {
    float correction[kMaxLanes];
    V::store(correction, exp<V>(V::set1(before - now)));
    typename V::F factor = V::set1(correction[0]);
    sum *= correction[0];
    for (int i = 0; i < Dv; i += V::kLanes) {
      V::store(values + i, V::mul(V::load(values + i), factor));
    }
    largest = now;
  }
  sum += V::sum(total);
}

}  // namespace
}  // namespace nibble::cpu

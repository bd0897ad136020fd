// Attention on all cores: softmax(scale * q k^T + mask) v. Scores are never
// stored. Sums are accumulated in fp32 and rounded once.
#pragma once

#include <cstdint>

#include "csrc/core/cpu_plan.h"
#include "csrc/core/dtype.h"

namespace nibble::cpu {

enum class MaskKind : uint8_t { kNone, kBool, kAdditive };

// Strides are in elements; elements of a row are contiguous.
struct Attention : AttentionShape {
  Dtype dtype;
  float scale;
  bool causal;  // query l sees the keys up to S - L + l
  MaskKind mask;
  Dtype mask_dtype;

  int64_t q_strides[3], k_strides[3], v_strides[3];  // batch, head, row
  int64_t mask_strides[3];                           // batch, head, query
};

struct AttentionOperands {
  const void *q, *k, *v;
  const void* mask;  // or null
  // [heads], or null. A sink is the score of one more key whose value is 0.
  const float* sinks;
  void* out;  // [B, L, heads, Dv] row-contiguous
};

// Blocks until done; uses the calling thread and the pool. Rows that see no key
// are zeros.
void attention(const Attention& problem,
               const CpuAttentionPlan& plan,
               const AttentionOperands& operands);

}  // namespace nibble::cpu

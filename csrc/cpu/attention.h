// Attention on all cores: softmax(scale * q k^T + mask) v, scores never
// stored. Accumulated in fp32 and rounded once.
#pragma once

#include <cstdint>

#include "csrc/core/dtype.h"

namespace nibble::cpu {

enum class MaskKind : uint8_t { kNone, kBool, kAdditive };

// Strides are in elements; elements of a row are contiguous.
struct Attention {
  int B, heads, kv_heads;  // kv_heads divides heads
  int L, S;                // queries and keys
  int D, Dv;
  Dtype dtype;
  float scale;
  bool causal;  // query l sees the keys up to S - L + l
  // Have the bits of a query's result depend on the keys that it sees alone:
  // not on how many queries come with it, keys that it does not see, threads.
  bool batch_invariant;
  MaskKind mask;
  Dtype mask_dtype;

  int64_t q_strides[3], k_strides[3], v_strides[3];  // batch, head, row
  int64_t mask_strides[3];                           // batch, head, query
};

struct AttentionOperands {
  const void *q, *k, *v;
  const void* mask;    // null without one
  const float* sinks;  // [heads]: one more score each, of a value 0; or null
  void* out;           // [B, L, heads, Dv] row-contiguous
};

// Blocks until done; uses the calling thread and the pool. Rows that may see
// nothing are zeros.
void attention(const Attention& problem, const AttentionOperands& operands);

}  // namespace nibble::cpu

// Attention on all cores: softmax(scale * q k^T + mask) v. Scores are never
// stored. Sums are accumulated in fp32 and rounded once.
#pragma once

#include <cstdint>

#include "csrc/core/cpu_plan.h"
#include "csrc/core/dtype.h"

namespace nibble::cpu {

enum class MaskKind : uint8_t { kNone, kBool, kAdditive };

// How the rows of keys or values are stored.
struct CacheFormat {
  Dtype dtype;   // of the elements, or of scales and biases
  int bits = 0;  // of a code: value = scale * code + bias; 0: rows are floats
  int group_size = 0;  // codes that share scale and bias

  bool is_quantized() const { return bits > 0; }
};

// Keys or values [B, kv_heads, S, width]. Strides are those of batch, head and
// row, in elements, or words of codes. Elements of a row are contiguous.
struct CacheShape : CacheFormat {
  int64_t strides[3];
  int64_t scale_strides[3], bias_strides[3];  // if it is quantized
};

struct CacheOperand {
  const void* data;
  const void* scales = nullptr;
  const void* biases = nullptr;
};

struct Attention : AttentionShape {
  Dtype dtype;  // of queries and result
  float scale;
  float cap;    // of scores, before masks: cap * tanh(score / cap); 0: none
  bool causal;  // query l sees the keys up to S - L + l
  MaskKind mask;
  Dtype mask_dtype;

  int64_t q_strides[3];  // batch, head, row
  CacheShape keys, values;
  int64_t mask_strides[3];  // batch, head, query
};

struct AttentionOperands {
  const void* q;
  CacheOperand keys, values;
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

// The gradients of attention on all cores.
//
//   p = softmax(scale * q k^T), y = p v
//
//   dv = p^T dy, ds = p * (dy v^T - sum(p * dy v^T)) * scale
//
//   dq = ds k, dk = ds^T q
#pragma once

namespace nibble::cpu {

// Without a mask but the causal one.
struct AttentionGradient {
  int B, heads, kv_heads;  // kv_heads divides heads
  int L, S;
  int D, Dv;  // multiples of 16
  float scale;
  bool causal;  // query l sees the keys up to S - L + l
};

// All arrays are fp32 and row-contiguous.
struct AttentionGradientOperands {
  const float *q, *k, *v;  // [B, heads, L, D], [B, kv_heads, S, D or Dv]
  const float* dy;         // [B, heads, L, Dv]
  float* dq;               // as q
  float *dk, *dv;          // [B, heads, S, D or Dv], for each head of queries
};

// Blocks until done. The bits do not depend on the number of threads.
void attention_gradient(const AttentionGradient& problem,
                        const AttentionGradientOperands& operands);

}  // namespace nibble::cpu

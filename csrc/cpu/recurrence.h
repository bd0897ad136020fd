// Linear recurrences on all cores: gated delta, state-space models, RWKV, and
// the depthwise convolutions before them. Each function blocks until done.
#pragma once

#include <cstdint>

#include "csrc/core/dtype.h"
#include "csrc/cpu/layers.h"

namespace nibble::cpu {

// A head has a state of rows s, one for each element of v. At each position
//
//   kAdd      s = decay s + beta v k
//   kDelta    s = decay s;  s = s + beta (v - s . k) k
//   kReplace  s = decay s + v k + (s . removed) added, the product before decay
//
// and then y = s . q + skip v.
enum class Rule { kAdd, kDelta, kReplace };

// Rows of a type, as the grid [B, T, heads].
struct RowsOf {
  Dtype dtype = Dtype::kFloat32;
  RowGrid grid{};
};

// Query heads Hk share q and k among Hv / Hk heads of v.
struct Recurrence {
  Rule rule;
  int B, T, Hk, Hv, Dk, Dv;
  RowsOf q, k, v;
  RowsOf removed, added;  // of kReplace
  // float32 [B, T, Hv], or rows of any type [B, T, Hv, Dk] if decay is null.
  const float* decay = nullptr;
  RowsOf decay_rows{};
  const float* beta = nullptr;    // [B, T, Hv]
  const uint8_t* mask = nullptr;  // [B, T]: positions that change nothing
  const float* skip = nullptr;    // [Hv]
  const float* state = nullptr;   // [B, Hv, Dv, Dk]; zeros if null
  float* new_state = nullptr;
  Dtype dtype = Dtype::kFloat32;  // of y
  void* y = nullptr;              // [B, T, Hv, Dv]
};

void recur(const Recurrence& problem);

// The gates of a state-space model with one rate for each head:
//   beta = clip(log(1 + exp(dt + dt_bias)), least, most)
//   decay = exp(-exp(log_rate) beta)
struct StateSpaceGates {
  int64_t rows;
  int heads;
  float least, most;
  const float* dt;                   // [rows, heads]
  const float *dt_bias, *log_rates;  // [heads]
  float *beta, *decay;               // [rows, heads]
};

void gates(const StateSpaceGates& problem);

// A selective scan: channel c has a state of N numbers, and
//   s = exp(delta[c] rates[c]) s + delta[c] x[c] b;  y[c] = s . c + skip[c]
//   x[c]
struct SelectiveScan {
  int B, T, channels, N;
  RowsOf delta, x;     // [B, T, channels] as the grid (B, 1, T)
  RowsOf b, c;         // [B, T, N]
  const float* rates;  // [channels, N]
  const float* skip;   // [channels]
  const float* state;  // [B, channels, N]; zeros if null
  float* new_state;
  Dtype dtype;  // of y
  void* y;      // [B, T, channels]
};

void scan(const SelectiveScan& problem);

// y [B, T, C] = bias + the sum over j of w[c, j] x[t + j, c], then SiLU if
// asked for; x [B, T + taps - 1, C], row-contiguous.
struct DepthwiseConvolution {
  Dtype dtype;
  int B, T, C, taps;
  bool silu;
  const void* x;
  const float* w;     // [C, taps]
  const float* bias;  // [C], or null
  void* y;
};

void convolve(const DepthwiseConvolution& problem);

}  // namespace nibble::cpu

// The kernels of an instruction set for the layers between the products: they
// compute rows, without threads and without allocation. layers.cpp and
// attention.cpp split the work among threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/core/dtype.h"
#include "csrc/cpu/activation.h"
#include "csrc/cpu/attention.h"
#include "csrc/cpu/kernels.h"
#include "csrc/cpu/recurrence.h"

namespace nibble::cpu {

// Keys that meet a block of queries at a time. With heads of 64, their keys,
// values and the scores of 64 queries take 96 KB of fp32, a part of any
// second-level cache. The scores of a single row stay in the first level.
inline constexpr int kKeyBlock = 128;
// Vectors are whole: the memory of a thread has room for one more.
inline constexpr int kMaxLanes = 16;

constexpr int whole_vectors(int count) {
  return (count + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
}

// The queries of a call of `attend`. Rows are (position, head): all heads that
// share keys and values, position by position.
struct Queries {
  Dtype dtype;
  const uint8_t* data;      // of the first position and head
  int64_t position_stride;  // elements
  int64_t head_stride;
  int heads;
  int rows;  // positions * heads
};

// The keys that a row may see, and the addends of their scores.
struct Mask {
  MaskKind kind;
  Dtype dtype;          // for kAdditive
  const uint8_t* data;  // of the first position and head, [count]
  int64_t position_stride, head_stride;  // elements
};

// The keys or the values of one head: a row for each position, of contiguous
// elements or codes.
struct CacheRows {
  CacheFormat format;
  int width;            // elements of a row
  const uint8_t* data;  // of the first row
  int64_t stride;       // bytes
  // Those of the first row, if the rows have codes.
  const uint8_t *scales, *biases;
  int64_t scale_stride, bias_stride;  // bytes
};

struct AttendArgs {
  Queries q;
  CacheRows keys, values;
  Mask mask;
  float scale;
  float cap;          // as in Attention
  float value_scale;  // factor of the values
  // Keys from begin on and before end. With `causal`, the first position sees
  // the keys before `visible`; each next position sees one more.
  int begin, end;
  bool causal;
  int few_queries;  // as in CpuAttentionPlan
  int visible;
};

// Sums of a softmax that is not yet divided: for row r,
//   values[r, :] = sum over keys of exp(score - largest[r]) * value
//   sum[r] = sum over keys of exp(score - largest[r])
// largest[r] is -inf if the row sees no key. If it sees keys and all scores are
// -inf, it is finite and sum[r] is 0.
// values has rows of whole_vectors(Dv).
struct Attended {
  float* values;
  float* largest;
  float* sum;
};

// Rows of the state of one head, [rows, width], over some positions.
// recurrence.h has the rules. Rows of q, k, removed and added have `width`
// floats, which are whole vectors, zero beyond the head.
struct RecurArgs {
  Rule rule;
  int positions, rows, width;
  const float *q, *k;
  const float *removed, *added;  // of kReplace, else any memory
  bool vector_decay;
  const float* decay;   // [positions] or [positions, width]
  const float* beta;    // [positions], not of kReplace
  const uint8_t* mask;  // [positions], or null
  float skip;
  const float* v;  // [positions, rows]
  float* y;        // [positions, rows]
  float* state;    // changed in place
};

// Channels of a selective scan over some positions; recurrence.h has the
// formula. Rows of b, c, rates and state have `width` floats, whole vectors.
struct ScanArgs {
  int positions, channels, width;
  const float *delta, *x;  // [positions, channels]
  const float *b, *c;      // [positions, width]
  const float* rates;      // [channels, width]
  const float* skip;       // [channels]
  float* state;            // [channels, width], changed in place
  float* y;                // [positions, channels]
};

// y [positions, channels] = bias + the sum over j of w[j] * x[t + j], then SiLU
// if `silu`. Rows of w and bias have `channel_room` floats: whole vectors.
struct ConvolveArgs {
  Dtype dtype;
  int positions, channels, taps, channel_room;
  int64_t stride;  // of x and y, elements
  const uint8_t* x;
  const float *w, *bias;
  bool silu;
  uint8_t* y;
};

// Columns `rows` of y [M, N] = x @ w^T + bias, w [N, K]. At most kMaxRows rows
// of x, at most kBlockN columns. Rows of x are x_stride apart and zero up to
// whole vectors.
struct DenseArgs {
  int M, N, K;
  Range rows;
  Dtype dtype, weight_dtype;
  const uint8_t* w;
  const float* x;
  size_t x_stride;
  const uint8_t* bias;  // of dtype, or null
  uint8_t* y;
};

struct LayerKernels {
  // out [count] = x as fp32; out has room for whole vectors.
  void (*widen)(Dtype dtype, const uint8_t* x, int count, float* out);

  // y [D] = x [D] / sqrt(mean(x^2) + eps) * weight [D]; weight may be null.
  // scratch: whole_vectors(D) floats.
  void (*rms_norm)(Dtype dtype,
                   const uint8_t* x,
                   const float* weight,
                   int D,
                   float eps,
                   Dtype out_dtype,
                   uint8_t* y,
                   float* scratch);

  // Rotates the pairs (x[i], x[half + i]), or (x[2i], x[2i + 1]) if
  // traditional, by angles of the given cosines and sines [half].
  // scratch: 2 * whole_vectors(2 * half) floats.
  void (*rotate)(Dtype dtype,
                 const uint8_t* x,
                 const float* cosines,
                 const float* sines,
                 int half,
                 bool traditional,
                 uint8_t* y,
                 float* scratch);

  // largest = max(x), sum = sum over x of exp(x - largest), 0 if largest is
  // infinite. sum is NaN if an element is. count is at least 1.
  void (*sum_exponentials)(
      Dtype dtype, const uint8_t* x, size_t count, float* largest, float* sum);

  // largest = max(x), place = its first index; NaN and its first index if an
  // element is NaN. count is at least 1.
  void (*find_largest)(Dtype dtype,
                       const uint8_t* x,
                       size_t count,
                       float* largest,
                       size_t* place);

  // y [count] = sums + bias + residual, rounded once. bias and residual have
  // y's type and may be null. After sums, whole vectors can be read.
  void (*add_and_round)(Dtype dtype,
                        const float* sums,
                        int count,
                        const uint8_t* bias,
                        const uint8_t* residual,
                        uint8_t* y);

  // y [count] = gate / (1 + exp(-gate)) * up, rounded once. After gate and up,
  // whole vectors can be read.
  void (*swiglu_and_round)(
      Dtype dtype, const float* gate, const float* up, int count, uint8_t* y);

  // y = the activation of gate, times up unless up is null.
  void (*activate)(const ActivationOptions& options,
                   Dtype dtype,
                   const uint8_t* gate,
                   const uint8_t* up,
                   size_t count,
                   uint8_t* y);

  // y [D] = (x - mean) / sqrt(variance + eps) * weight + bias; both may be
  // null. scratch: whole_vectors(D) floats.
  void (*layer_norm)(Dtype dtype,
                     const uint8_t* x,
                     const float* weight,
                     const float* bias,
                     int D,
                     float eps,
                     Dtype out_dtype,
                     uint8_t* y,
                     float* scratch);

  void (*recur)(const RecurArgs& args);
  void (*scan)(const ScanArgs& args);
  void (*convolve)(const ConvolveArgs& args);

  // scratch: kScratchFloats.
  void (*multiply_dense)(const DenseArgs& args, float* scratch);

  // Returns the floats that `attend` needs from its caller.
  size_t (*attend_scratch)(int rows, int D, int Dv);
  void (*attend)(const AttendArgs& args, Attended out, float* scratch);

  // y [Dv] = values / sum rounded; zeros if sum is 0: no key was visible.
  void (*divide)(
      Dtype dtype, const float* values, float sum, int Dv, uint8_t* y);
};

extern const LayerKernels kScalarLayers;
#if defined(__x86_64__)
extern const LayerKernels kAvx2Layers;
extern const LayerKernels kAvx512Layers;
#elif defined(__aarch64__)
extern const LayerKernels kNeonLayers;
#endif

}  // namespace nibble::cpu

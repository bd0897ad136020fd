// The kernels of an instruction set: functions over ranges of rows, without
// threads and without allocation. matmul.cpp splits the work among threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/core/dtype.h"
#include "csrc/core/format.h"

namespace nibble::cpu {

struct Range {
  int begin, end;
};

// One weight matrix [N, K], row-contiguous, in MLX's layout.
struct Weights {
  const uint8_t* codes;
  const uint8_t* scales;
  const uint8_t* biases;  // not read if the format has none
  int N, K;
  QuantFormat format;
  Dtype scale_dtype;
  // The same matrix in the packed layout of the instruction set in use, or
  // nullptr. The three arrays above are then not read, and ranges of rows begin
  // with whole strips.
  const uint8_t* packed = nullptr;
  // The columns that take part in x @ w_hat^T: whole blocks of kBlockK, and the
  // rest of a row.
  Range columns{0, K};
};

// Codes of a row that are multiplied before their products are summed up. An
// activation tile [6, 1024] and 4 decoded weight rows take 40 KB of fp32: they
// stay in a 48 KB first-level cache. Every sum has the same order for every
// number of rows, so results do not depend on it.
inline constexpr int kBlockK = 1024;
// Rows decoded at a time: [64, 1024] is 256 KB, a part of any second-level
// cache.
inline constexpr int kBlockN = 64;
// The most activation rows of one call: bounds the sums below.
inline constexpr int kMaxRows = 256;
// The block of the product that is not transposed: codes and weight rows.
inline constexpr int kColumnBlockK = 256;
inline constexpr int kColumnBlockN = 256;

// The fp32 memory that a thread gives to a call: decoded weights, then sums,
// then a block of packed weights in MLX's layout.
inline constexpr size_t kPanelFloats = size_t{kBlockN} * kBlockK;
inline constexpr size_t kSumFloats = size_t{kMaxRows} * kColumnBlockK;
inline constexpr size_t kUnpackedFloats =
    size_t{kBlockN} * (kBlockK / 4 + 2 * kBlockK / kSmallestGroup);
inline constexpr size_t kScratchFloats =
    kPanelFloats + kSumFloats + kUnpackedFloats;
static_assert(kColumnBlockN * kColumnBlockK <= kPanelFloats);
static_assert(kBlockN <= kColumnBlockK);
// Weight rows of a block of gradients: a multiple of all tiles and vectors. Its
// sums and its panel of the left operand take the place of a product's sums.
inline constexpr int kGradientRows = 96;
static_assert(kGradientRows * (kColumnBlockK + kColumnBlockN) <= kSumFloats);

// The most rows of an exact product that reads the packed layout.
inline constexpr int kMostPackedRows = 8;

// How a product reads weights; CpuKernelPlan says when. Integer products know
// `as_packed` only.
struct Reading {
  bool decode;      // on the way, for each few rows of x; else into a panel
  bool whole_rows;  // a few weight rows to their end before the next few
  bool as_packed;   // packed weights as they lie; else block by block unpacked
};

// Rows in MLX's layout, one after the other. Null: an array that is not wanted.
struct UnpackedRows {
  uint8_t* codes;
  uint8_t* scales;
  uint8_t* biases;
};

// Rows of two operands that are multiplied: row left_rows[i] of left [.., N]
// and row right_rows[i] of right [.., K], for i < count.
struct RowPairs {
  const uint8_t* left;
  const uint8_t* right;
  Dtype dtype;
  const uint32_t* left_rows;
  const uint32_t* right_rows;
  int count;
};

// sums[m, k] += sum over n < count of x[m, n] * panel[n, k], for m < M and
// k < width, a multiple of 16. All fp32; strides are in elements.
struct FloatProduct {
  const float* panel;
  int panel_stride;
  int width, count;
  const float* x;
  int x_row_stride, x_step;
  int M;
  float* sums;
  int sums_stride;
};

struct Kernels {
  // out [count] = x as fp32, in the order in which multiply reads it. count is
  // a multiple of 32, unless natural_order.
  void (*arrange)(
      Dtype dtype, int bits, const void* x, size_t count, float* out);
  // Returns true if that order is x's own.
  bool (*natural_order)(int bits);
  // Facts for the planner, as in CpuProfile.
  int few_rows;
  int tile_rows;
  // As in CpuProfile.
  int packed_rows;

  // y[m, n] for m < M and n in rows = sum over k of x[m, k] * w_hat[n, k].
  // x [M, K] from arrange; y has rows of w.N; M <= kMaxRows. The bits are the
  // same for all ways of reading.
  void (*multiply)(const Weights& w,
                   const float* x,
                   int M,
                   Reading reading,
                   Range rows,
                   Dtype dtype,
                   void* y,
                   float* scratch);

  // y[m, k] for m < M and k in columns = sum over n of x[m, n] * w_hat[n, k].
  // x [M, N] in natural order; y has rows of w.K; columns a multiple of the
  // group size.
  void (*multiply_columns)(const Weights& w,
                           const float* x,
                           int M,
                           Range columns,
                           Dtype dtype,
                           void* y,
                           float* scratch);

  // out[n, k] = w_hat[n, k] for n in rows, all k.
  void (*dequantize)(const Weights& w, Range rows, Dtype dtype, void* out);

  // With d[n, k] = sum over the pairs of left[n] * right[k]: the sums of d, and
  // of the codes' products with d, over the groups of `columns` in `rows`: at
  // most kGradientRows rows and kColumnBlockK columns, whole groups. Writes the
  // elements [n, group] of biases and scales [N, groups]. gradient-inl.h.
  void (*group_gradients)(const Weights& w,
                          const RowPairs& pairs,
                          Range rows,
                          Range columns,
                          float* scales,
                          float* biases,
                          float* scratch);

  void (*add_products)(const FloatProduct& product);

  // Rows of a strip in the packed layout, packed-inl.h.
  int strip_rows;
  // Returns the bytes of a row in it.
  size_t (*packed_row_bytes)(QuantFormat format, Dtype scale_dtype, int K);
  // out = the strips of `rows`, the first of which begins a strip.
  void (*pack)(const Weights& w, Range rows, uint8_t* out);
  // out = the columns `columns`, whole groups, of `rows` of packed weights. The
  // first row begins a strip.
  void (*unpack)(const Weights& w,
                 Range rows,
                 Range columns,
                 const UnpackedRows& out);

  // Keeps the arithmetic units busy; returns the number of operations.
  // peak-inl.h.
  int64_t (*multiply_registers)(int64_t times, float* sink);
};

// The forms of activations as integers: int8_t, int16_t, or 16 bits as two
// signed bytes, 256 * high + low.
struct BytePair {};

template <class A>
struct IntegerForm {
  using Code = A;
  static constexpr int kPlanes = 1;
};
template <>
struct IntegerForm<BytePair> {
  using Code = int8_t;
  static constexpr int kPlanes = 2;
};
template <class A>
using Code = typename IntegerForm<A>::Code;
template <class A>
constexpr int kPlanes = IntegerForm<A>::kPlanes;

// Codes of a row that lie together: those of the largest group.
inline constexpr int kRunCodes = 128;

// Activations [M, K] as integers of 8 or 16 bits: in the group g of row m they
// are scales[g, m] * codes[m, k]; sums[g, m] is their sum. If codes of weights
// are floats, it is the integer that their offset (codes-inl.h) takes away. The
// codes of a group are in the kernels' own order.
//
// codes is [runs, rows, planes, kRunCodes]: the rows that meet the same weights
// lie together, so tiles are read from few pages.
struct QuantizedRows {
  void* codes;
  float* scales;
  float* sums;
  int rows;  // that the arrays have room for

  size_t group(int m, int g) const { return size_t(g) * rows + m; }

  // Codes from a row to the next.
  template <class A>
  static constexpr int kStride = kRunCodes * kPlanes<A>;

  // Row m from column k on, to the end of a run. The second plane is kRunCodes
  // further.
  template <class A>
  Code<A>* at(int m, int k) const {
    size_t row = size_t(k / kRunCodes) * rows + m;
    return static_cast<Code<A>*>(codes) + row * kStride<A> + k % kRunCodes;
  }
};

// Products with activations as integers of one width.
struct IntegerKernels {
  // out = x [rows, K]: scale = max|x| over a group of the format, divided by
  // the largest integer of the width.
  void (*quantize)(Dtype dtype,
                   QuantFormat format,
                   const void* x,
                   int rows,
                   int K,
                   const QuantizedRows& out);

  // As Kernels::multiply.
  void (*multiply)(const Weights& w,
                   const QuantizedRows& x,
                   int M,
                   Reading reading,
                   Range rows,
                   Dtype dtype,
                   void* y,
                   float* scratch);

  // The largest number of rows for which the packed layout is best read as it
  // lies.
  int packed_rows;
};

extern const Kernels kScalarKernels;
extern const IntegerKernels kScalarInt8Kernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const IntegerKernels kAvx2Int8Kernels;
extern const IntegerKernels kAvx2Int16Kernels;
extern const IntegerKernels kAvx2VnniInt8Kernels;
extern const IntegerKernels kAvx2VnniInt16Kernels;
extern const Kernels kAvx512Kernels;
extern const IntegerKernels kAvx512Int8Kernels;
extern const IntegerKernels kAvx512Int16Kernels;
extern const IntegerKernels kAvx512VnniInt8Kernels;
extern const IntegerKernels kAvx512VnniInt16Kernels;
extern const IntegerKernels kAmxInt8Kernels;
extern const IntegerKernels kAmxInt16Kernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
extern const IntegerKernels kNeonInt8Kernels;
extern const IntegerKernels kNeonDotprodInt8Kernels;
extern const IntegerKernels kNeonI8mmInt8Kernels;
#endif

}  // namespace nibble::cpu

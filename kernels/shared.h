// The contract between host and device: valid in MSL and in C++20.
#pragma once

// Every device function is inlined. Metal otherwise leaves a larger one with
// two callers as a call (seen in MLX's library), and arrays that it shares with
// its caller then live in memory.
#ifndef NIBBLE_INLINE
#define NIBBLE_INLINE inline __attribute__((always_inline))
#endif

// Threads of a simdgroup, on every Apple GPU (Metal feature set tables).
#define NIBBLE_SIMD_WIDTH 32

// qmv: a simdgroup computes four rows of w at once, so that each x it reads
// serves four rows. MLX tuned this number (results_per_simdgroup) on every
// Apple GPU. Two simdgroups make a threadgroup, so that small N still fills the
// cores.
#define NIBBLE_QMV_ROWS 4
#define NIBBLE_QMV_SIMDGROUPS 2
#define NIBBLE_QMV_QUADS 8  // of a simdgroup

// qvm: 16 lanes read a row of w, at 4 and 8 bits 64 bytes at a time. Eight
// simdgroups share the rows.
#define NIBBLE_QVM_LANES 16
#define NIBBLE_QVM_SIMDGROUPS 8

// Codes of the shortest run that fills whole words.
NIBBLE_INLINE constexpr int nibble_run_codes(int bits) {
  return bits % 2 ? 32 : bits == 6 ? 16 : 32 / bits;
}

// qmm_skinny: neighbouring codes of a row that a lane takes in one step. They
// fill whole words. Four lanes make a step, which fits one line of 64 bytes,
// except at 5 bits.
#define NIBBLE_SKINNY_CODES(bits) ((bits) == 8 || (bits) == 6 ? 16 : 32)

// Columns of w for each of `simdgroups`; the last ones may have fewer.
NIBBLE_INLINE int nibble_skinny_share(int bits, int K, int simdgroups) {
  const int step = 4 * NIBBLE_SKINNY_CODES(bits);
  const int steps = (K + step - 1) / step;
  return (steps + simdgroups - 1) / simdgroups * step;
}

// Bytes of threadgroup memory. Half of the simdgroups pass their sums, in
// float, to the other half. Before that, all but the first may share a line of
// 64 bytes of each of BN rows of w: at the widths where a step is no whole
// lines.
NIBBLE_INLINE constexpr int nibble_skinny_memory(int bits,
                                                 int BM,
                                                 int BN,
                                                 int simdgroups) {
  const int sums = BM * BN * simdgroups / 2 * 4;
  const int step = 4 * NIBBLE_SKINNY_CODES(bits);
  const int lines =
      step * bits % (64 * 8) == 0 ? 0 : (simdgroups - 1) * BN * 64;
  return sums > lines ? sums : lines;
}

// True if two of these shares meet inside a line of a row.
NIBBLE_INLINE bool nibble_skinny_cuts_lines(int bits, int K, int simdgroups) {
  const int share = nibble_skinny_share(bits, K, simdgroups);
  return share < K && share * bits % (64 * 8) != 0;
}

// Bytes of threadgroup memory on every Apple GPU that MLX supports, at least
// (Metal feature set tables, Apple7 and later).
#define NIBBLE_THREADGROUP_BYTES 32768

// Bytes of threadgroup memory that an entry for families without any declares:
// an array needs an element. Occupancy stays the same: a core runs at most 96
// simdgroups (metal-benchmarks), which are 48 threadgroups of qmv and 768
// bytes.
#define NIBBLE_LEAST_THREADGROUP_BYTES 16

// Every operand begins at a multiple of this number of bytes: the widest load
// of a kernel. Metal requires aligned loads.
#define NIBBLE_ALIGNMENT 16
// contiguous: the same as dequantize.
#define NIBBLE_CONTIGUOUS_THREADS 256
// The most dimensions of a view that it copies, after those that go on in each
// other are one. The bytes of an element may be one more.
#define NIBBLE_CONTIGUOUS_DIMS 8

// dequantize: eight simdgroups; any number works for a kernel that streams.
#define NIBBLE_DEQUANTIZE_THREADS 256

// The parts of an epilogue: what y = x @ w_hat^T adds to the product.
#define NIBBLE_BIAS 1
#define NIBBLE_RESIDUAL 2

// Parameters of every y = x @ w_hat^T or x @ w_hat. Batch b of x and y uses
// weight matrix b % w_count.
struct MatmulParams {
  int M;         // rows of x and y, in one batch
  int N;         // rows of w
  int K;         // columns of the dequantized w
  int w_count;   // weight matrices
  int epilogue;  // NIBBLE_BIAS | NIBBLE_RESIDUAL
};

// qmm_splitk: each part of K begins at a multiple of this. Such a place begins
// a line of 64 bytes at every width of a code, and four groups of up to 128.
#define NIBBLE_SPLIT 512
// Its second launch: the same as dequantize.
#define NIBBLE_SPLIT_SUM_THREADS 256

// Parameters of both launches of y = x @ w_hat^T with K split.
struct SplitParams {
  int M;
  int N;
  int K;
  int part;      // columns of a part of K; the last may have fewer
  int parts;     // ceil(K / part)
  int epilogue;  // NIBBLE_BIAS | NIBBLE_RESIDUAL
};

// Parameters of up to three products y_i = x @ w_hat_i^T of one x.
#define NIBBLE_JOINT 3
struct JointParams {
  int M;  // rows of x and of each y
  int K;
  int N0;  // rows of each w; 0 if there is no such product
  int N1;
  int N2;
  int biased;  // bit i: y_i adds a bias
};

// Parameters of y[b] = x[lhs[b]] @ w_hat[rhs[b]]^T.
struct GatherParams {
  int M;  // rows of one product
  int N;
  int K;
  int B;        // products
  int experts;  // weight matrices
};

// group_gradient: a simdgroup computes a square of d/d w_hat with this many
// rows and columns, the codes of the smallest group. It has 16 sums in 8x8
// matrices, as many as a simdgroup of the largest tile of qmm.
#define NIBBLE_GRADIENT_SIDE 32
#define NIBBLE_GRADIENT_SIMDGROUPS 4

// The squares of a threadgroup that are side by side: a group or more.
NIBBLE_INLINE constexpr int nibble_gradient_across(int group_size) {
  return group_size > 64 ? 4 : 2;
}

// Bytes of threadgroup memory: two sums of each row of each square, in float,
// if a group has more than one square.
NIBBLE_INLINE constexpr int nibble_gradient_memory(int group_size) {
  return group_size > NIBBLE_GRADIENT_SIDE
             ? NIBBLE_GRADIENT_SIMDGROUPS * NIBBLE_GRADIENT_SIDE * 8
             : NIBBLE_LEAST_THREADGROUP_BYTES;
}

// Parameters of the gradients of scales and biases. Batch b of x and dy has
// weight matrix b % w_count.
struct GradientParams {
  int M;          // rows of a batch
  int N;          // rows of w
  int K;          // columns of w_hat
  int w_count;    // weight matrices
  int batches;    // of each weight matrix
  int transpose;  // y = x @ w_hat^T, not x @ w_hat
};

// The same for y[b] = x[lhs[b]] @ w_hat[rhs[b]]^T.
struct GatherGradientParams {
  int M;
  int N;
  int K;
  int B;  // products
  int transpose;
};

// Parameters of w -> w_hat for a matrix [rows, K].
struct DequantizeParams {
  int rows;
  int K;
};

// Parameters of a contiguous copy.
struct ContiguousParams {
  unsigned long units;  // bytes, or pairs of bytes
  int dims;
  long shape[NIBBLE_CONTIGUOUS_DIMS];
  long strides[NIBBLE_CONTIGUOUS_DIMS];  // in units
};

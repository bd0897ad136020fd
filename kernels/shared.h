// The contract between host and device: valid in MSL and in C++20.
#pragma once

// Threads of a simdgroup, on every Apple GPU (Metal feature set tables).
#define NIBBLE_SIMD_WIDTH 32

// qmv: one simdgroup computes four rows of w at once, so that each x that it
// reads serves four rows (MLX's results_per_simdgroup, tuned there on every
// Apple GPU); two simdgroups make a threadgroup, so that small N still fills
// the cores.
#define NIBBLE_QMV_ROWS 4
#define NIBBLE_QMV_SIMDGROUPS 2
#define NIBBLE_QMV_QUADS 8  // of a simdgroup

// qvm: a row of w is read by 16 lanes, which at 4 and 8 bits makes 64 bytes at
// a time; eight simdgroups share out the rows.
#define NIBBLE_QVM_LANES 16
#define NIBBLE_QVM_SIMDGROUPS 8

// The shortest run of codes that fills whole words.
constexpr int nibble_run_codes(int bits) {
  return bits % 2 ? 32 : bits == 6 ? 16 : 32 / bits;
}

// qmm_skinny: neighbouring codes of a row that a lane takes at a time, four
// lanes at each step: whole words, and no more than a line where that can be
// (not at 5 bits).
#define NIBBLE_SKINNY_CODES(bits) ((bits) == 8 || (bits) == 6 ? 16 : 32)

// Columns of w that each of its `simdgroups` takes, the last ones fewer.
inline int nibble_skinny_share(int bits, int K, int simdgroups) {
  const int step = 4 * NIBBLE_SKINNY_CODES(bits);
  const int steps = (K + step - 1) / step;
  return (steps + simdgroups - 1) / simdgroups * step;
}

// Whether some of these shares meet inside a line of a row.
inline bool nibble_skinny_cuts_lines(int bits, int K, int simdgroups) {
  const int share = nibble_skinny_share(bits, K, simdgroups);
  return share < K && share * bits % (64 * 8) != 0;
}

// Threadgroup memory that there is at least, in bytes, on every Apple GPU of
// MLX's (Metal feature set tables, Apple7 and later).
#define NIBBLE_THREADGROUP_BYTES 32768

// Every operand begins at a multiple of so many bytes: the widest load that a
// kernel makes, and Metal wants loads aligned.
#define NIBBLE_ALIGNMENT 16
// align: as dequantize.
#define NIBBLE_ALIGN_THREADS 256

// dequantize: eight simdgroups; any number works for a kernel that streams.
#define NIBBLE_DEQUANTIZE_THREADS 256

// What a product x @ w_hat^T may have added to it.
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

// qmm_splitk: what parts of K begin at a multiple of: whole lines of 64 bytes
// at every width of a code, and whole fours of groups of up to 128.
#define NIBBLE_SPLIT 512
// Its second pass: as dequantize.
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
  int N0;  // rows of each w; 0: there is no such product
  int N1;
  int N2;
  int biased;  // bit i: a bias is added to y_i
};

// Parameters of y[b] = x[lhs[b]] @ w_hat[rhs[b]]^T.
struct GatherParams {
  int M;  // rows of one product
  int N;
  int K;
  int B;  // products
};

// Parameters of w -> w_hat for a matrix [rows, K].
struct DequantizeParams {
  int rows;
  int K;
};

// Parameters of a copy.
struct AlignParams {
  unsigned long pairs;  // of bytes
};

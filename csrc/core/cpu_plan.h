// Plans of the native CPU backend: plain data that the planner makes and the
// executor follows.
#pragma once

#include <cstdint>

namespace nibble {

// The facts about a CPU that a plan depends on.
struct CpuProfile {
  int threads = 1;
  // Exact products of at most this number of rows best decode weights on the
  // way. A constant of the instruction set.
  int few_rows = 4;
  // Rows in a register tile of the kernels.
  int tile_rows = 3;
  // The largest number of rows for which exact products are faster with the
  // packed layout. A constant of the instruction set.
  int packed_rows = 3;
  // The same for products of integers of 8 and of 16 bits.
  int packed_int8_rows = 32;
  int packed_int16_rows = 32;
  // Products of 16-bit activations are faster with integers.
  bool int16 = false;
  // Products of codes that are floats, and those of many rows, are faster in
  // bfloat16.
  bool bfloat16 = false;

  bool operator==(const CpuProfile&) const = default;
};

// The integers that activations are rounded to, with one step for each row and
// group of the weights' format. Beyond the rounding of fp32 sums, the error is
// at most sum over g of (1/2 + e) step[m, g] * sum over k in g of |w_hat[n, k]|
//     where step[m, g] = max(max over k in g of |x[m, k]| / q, 2^-126).
// For int8, q is 127 and e is 2^-15. For int16, q is 32639 and e is 2^-7.
// A CPU may round to bfloat16 or to the sum of two instead, which loses less:
// codes that are floats with their scales are exact in one. Weights of integer
// codes are rounded too: to one if x may be int8, else to the sum of two.
// docs/reference/numerics.md derives the bounds.
enum class Activations : uint8_t {
  kExact,
  kInt16,
  kInt8,
  kBfloat16,
  kBfloat16ByPair,  // weights are pairs
  kBfloat16Pair     // both are
};

// `bits` is that of the integers, or 0.
constexpr Activations activations_of(int bits) {
  return bits == 8    ? Activations::kInt8
         : bits == 16 ? Activations::kInt16
                      : Activations::kExact;
}

// How kernels compute a block of rows of x. `few_rows`, `whole_rows` and
// `packed_rows` are the largest number of rows for which a way is taken. Only
// `activations` changes the bits of a result.
struct CpuKernelPlan {
  Activations activations = Activations::kExact;
  // Exact products decode weights while they multiply. With more rows, they
  // decode weights into a panel first.
  int few_rows = 0;
  // Exact products read a few weight rows to their end before the next few.
  int whole_rows = 0;
  // Products read packed weights as they lie, and unpack blocks otherwise.
  int packed_rows = 0;
  // Rows of x in a chunk of their preparation.
  int prepared_rows = 1;

  bool exact() const { return activations == Activations::kExact; }
  bool operator==(const CpuKernelPlan&) const = default;
};

// The plan of a product. `depth` has a part in the bits of a result, too. It
// depends on the weights alone, so the bits are the same for all numbers of
// rows and threads.
struct CpuPlan : CpuKernelPlan {
  int block_rows = 1;  // rows of x that are computed together
  int columns = 0;     // of y in a chunk
  int depth = 0;       // places of k in a chunk; chunks are added in order

  bool operator==(const CpuPlan&) const = default;
};

// The plan of products whose rows choose their weights.
struct CpuGatherPlan : CpuKernelPlan {
  int block_rows = 1;  // rows that meet one matrix together: a group
  int wave_rows = 1;   // rows whose groups are computed at the same time
  int chunks = 1;      // chunks of columns in all groups of a wave

  bool operator==(const CpuGatherPlan&) const = default;
};

struct CpuDequantizePlan {
  int rows = 1;  // in a chunk
};

// softmax(q k^T) v with L queries and S keys.
struct AttentionShape {
  int B, heads, kv_heads;  // kv_heads divides heads
  int L, S;
  int D, Dv;
  // The bits of a query's result depend only on the keys that it sees: not on
  // other queries, on keys that it does not see, or on the number of threads.
  bool batch_invariant;
};

// The plan of attention. A unit is one batch, one head of keys and values and
// one block of positions. A chunk is one unit and one range of keys.
struct CpuAttentionPlan {
  int positions = 1;  // in a block
  int blocks = 1;
  int split_keys = 1;  // in a range
  int splits = 1;      // ranges of keys
  int chunks = 1;
  bool parallel = false;  // chunks run on all threads
  // For at most this number of rows of queries, scores are dot products with
  // rows of keys. With more, keys are transposed first.
  int few_queries = 0;

  bool operator==(const CpuAttentionPlan&) const = default;
};

}  // namespace nibble

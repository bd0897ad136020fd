// What the entry points of the backend share: activations made ready for the
// kernels, and ranges of work for the threads.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "csrc/core/cpu_planner.h"
#include "csrc/core/problem.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/matmul.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {

// Sums that a thread keeps before they are rounded: 256 KB, a part of any
// second level.
inline constexpr int kSums = 64 * 1024;

struct FreeFloats {
  void operator()(float* p) const {
    ::operator delete[](p, std::align_val_t{64});
  }
};
using Floats = std::unique_ptr<float[], FreeFloats>;

// With room for one vector beyond, as the kernels need.
inline Floats make_floats(size_t count) {
  return Floats(static_cast<float*>(
      ::operator new[]((count + 16) * sizeof(float), std::align_val_t{64})));
}

// What a thread lends to the kernels: kScratchFloats.
float* thread_scratch();

inline const uint8_t* at(const void* p, size_t index, Dtype dtype) {
  return static_cast<const uint8_t*>(p) + index * size_of(dtype);
}

inline uint8_t* at(void* p, size_t index, Dtype dtype) {
  return static_cast<uint8_t*>(p) + index * size_of(dtype);
}

// What all products of a call have in common: x [.., in()] by matrices [N, K].
struct Form {
  int N, K;
  Dtype dtype;
  Dtype scale_dtype;
  QuantFormat format;
  bool transpose;
  bool int8;
  // Up to this number of rows of x, weights are decoded on the way.
  int few_rows;
  // Columns of y of a piece of work; of gathered products each call has its
  // own.
  int columns = 0;
  // Places of k of a piece of work, of products that are not gathered.
  int depth = 0;

  Form(const MatmulProblem& problem, Activations activations);
  Form(const GatherProblem& problem, Activations activations);

  int in() const { return transpose ? K : N; }
  int out() const { return transpose ? N : K; }

  // Matrix `index` of a stack of matrices [N, K].
  Weights matrix(const QuantizedOperands& o, int index) const;
};

// The rows of `w` in `rows` alone.
Weights rows_of(const Weights& w, Range rows);

// Rows of x [.., in] as the kernels of a form want them: fp32 in the order of
// the codes, or integers of 8 bits.
class Rows {
 public:
  Rows(const Form& form, int capacity);

  // Rows 0.. become the `count` rows at x, which must outlive their use.
  void fill(const void* x, int count);

  // Rows first.. become the `count` rows at x.
  void put(int first, const void* x, int count);

  // y[m, range] of the product of rows first.. with w, rounded to `dtype`;
  // rows of y are as long as all of w's make them. At most kMaxRows rows.
  void multiply(const Weights& w,
                int first,
                int count,
                Range range,
                Dtype dtype,
                void* y) const;

 private:
  const Form form_;
  const Isa& isa_;
  Floats memory_;
  const float* floats_ = nullptr;
  QuantizedRows int8_{};
};

// Calls body(range) for ranges of columns of y that make up all of it, each of
// no more than `most` columns, which are at least kMinRows.
template <typename Fn>
void by_ranges(const Form& form, int most, Fn&& body) {
  int out = form.out();
  int step = std::min(form.columns, most);
  parallel_for((out + step - 1) / step, [&](int i) {
    body(Range{i * step, std::min(out, (i + 1) * step)});
  });
}

// The most columns of which M rows of sums are kept at a time.
inline int columns_of_sums(int M) {
  return std::max(kMinRows, kSums / M / kMinRows * kMinRows);
}

}  // namespace nibble::cpu

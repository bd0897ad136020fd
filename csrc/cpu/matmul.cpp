#include "csrc/cpu/matmul.h"

#include <algorithm>
#include <memory>
#include <new>
#include <optional>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/kernels.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// A call of fewer products than this is done by the calling thread: below,
// handing work over (1 to 2 us when the workers are awake) costs more than
// half the work takes (some 20 products a ns).
constexpr int64_t kParallelProducts = 64 * 1024;
// Pieces of work for each thread, so that one that is held up delays little.
constexpr int kPiecesPerThread = 4;
// Fewer weight rows are never worth a piece, and whole tiles are best.
constexpr int kMinRows = 32;
// Dequantized codes of a piece.
constexpr int kDequantizePiece = 64 * 1024;

struct Free {
  void operator()(float* p) const {
    ::operator delete[](p, std::align_val_t{64});
  }
};
using Floats = std::unique_ptr<float[], Free>;

// With room for one vector beyond, as the kernels need.
Floats make_floats(size_t count) {
  return Floats(static_cast<float*>(
      ::operator new[]((count + 16) * sizeof(float), std::align_val_t{64})));
}

float* thread_scratch() {
  thread_local Floats scratch = make_floats(kScratchFloats);
  return scratch.get();
}

const uint8_t* at(const void* p, size_t index, Dtype dtype) {
  return static_cast<const uint8_t*>(p) + index * size_of(dtype);
}

Weights weights_of(const MatmulProblem& p, const MatmulOperands& o, int b) {
  size_t rows = size_t(b / p.batch.repeat % p.batch.count) * p.N;
  size_t groups = rows * p.format.groups_per_row(p.K);
  return {reinterpret_cast<const uint8_t*>(o.w +
                                           rows * p.format.words_per_row(p.K)),
          at(o.scales, groups, p.scale_dtype),
          at(o.biases, groups, p.scale_dtype),
          p.N,
          p.K,
          p.format,
          p.scale_dtype};
}

// Rows of x of a piece of their preparation: all, unless a hand-over pays.
int rows_apiece(int M, int in) {
  return int64_t(M) * in < kParallelProducts ? M : (M + 7) / 8;
}

// x [M, in] as the kernels want it: itself if that will do, else in `room`.
const float* arranged(const Kernels& kernels,
                      const MatmulProblem& p,
                      const void* x,
                      int M,
                      Floats& room) {
  int in = p.transpose ? p.K : p.N;
  // x @ w_hat broadcasts single activations: their order is their own.
  int bits = p.transpose ? p.format.bits : 8;
  if (p.dtype == Dtype::kFloat32 && kernels.natural_order(bits)) {
    return static_cast<const float*>(x);
  }
  if (!room) {
    room = make_floats(size_t(std::min(p.M, kMaxRows)) * in);
  }
  int rows = rows_apiece(M, in);
  parallel_for((M + rows - 1) / rows, [&](int i) {
    int begin = i * rows, count = std::min(rows, M - begin);
    size_t first = size_t(begin) * in;
    kernels.arrange(p.dtype,
                    bits,
                    at(x, first, p.dtype),
                    size_t(count) * in,
                    room.get() + first);
  });
  return room.get();
}

// x [M, K] as 8-bit integers, and their memory.
class Int8Rows {
 public:
  explicit Int8Rows(const MatmulProblem& p) {
    size_t rows = std::min(p.M, kMaxRows);
    size_t groups = rows * p.format.groups_per_row(p.K);
    memory_ = make_floats(2 * groups + rows * p.K / sizeof(float));
    scales_ = memory_.get();
    sums_ = scales_ + groups;
    codes_ = reinterpret_cast<int8_t*>(sums_ + groups);
  }

  QuantizedRows fill(const Int8Kernels& kernels,
                     const MatmulProblem& p,
                     const void* x,
                     int M) {
    int step = rows_apiece(M, p.K);
    size_t groups = p.format.groups_per_row(p.K);
    parallel_for((M + step - 1) / step, [&](int i) {
      size_t row = size_t(i) * step;
      kernels.quantize(
          p.dtype,
          p.format,
          at(x, row * p.K, p.dtype),
          std::min(step, M - i * step),
          p.K,
          {codes_ + row * p.K, scales_ + row * groups, sums_ + row * groups});
    });
    return {codes_, scales_, sums_};
  }

 private:
  Floats memory_;
  float* scales_;
  float* sums_;
  int8_t* codes_;
};

int round_up(int value, int step) {
  return (value + step - 1) / step * step;
}

// Calls multiply(range) for ranges of columns of y that make up all of it.
template <typename Multiply>
void by_ranges(const MatmulProblem& p, int M, Multiply&& multiply) {
  int out = p.transpose ? p.N : p.K;
  int unit = p.transpose ? kMinRows : std::max(kMinRows, p.format.group_size);
  int pieces = int64_t(M) * p.N * p.K < kParallelProducts
                   ? 1
                   : kPiecesPerThread * thread_count();
  int step = round_up((out + pieces - 1) / pieces, unit);
  parallel_for((out + step - 1) / step, [&](int i) {
    multiply(Range{i * step, std::min(out, (i + 1) * step)});
  });
}

}  // namespace

void matmul(const MatmulProblem& problem,
            const MatmulOperands& operands,
            Activations activations) {
  const Isa& use = isa();
  MatmulProblem p = merge_rows(problem);
  bool int8 = activations == Activations::kInt8 && p.transpose;
  size_t in = p.transpose ? p.K : p.N, out = p.transpose ? p.N : p.K;
  Floats room;
  std::optional<Int8Rows> int8_rows;
  if (int8) {
    int8_rows.emplace(p);
  }
  for (int b = 0; b < p.batch.size; ++b) {
    Weights w = weights_of(p, operands, b);
    for (int m = 0; m < p.M; m += kMaxRows) {
      int M = std::min(kMaxRows, p.M - m);
      size_t row = size_t(b) * p.M + m;
      const void* x = at(operands.x, row * in, p.dtype);
      void* y =
          static_cast<uint8_t*>(operands.y) + row * out * size_of(p.dtype);
      if (int8) {
        QuantizedRows rows = int8_rows->fill(use.int8, p, x, M);
        by_ranges(p, M, [&](Range range) {
          use.int8.multiply(w, rows, M, range, p.dtype, y, thread_scratch());
        });
      } else {
        const float* rows = arranged(use.kernels, p, x, M, room);
        auto multiply =
            p.transpose ? use.kernels.multiply : use.kernels.multiply_columns;
        by_ranges(p, M, [&](Range range) {
          multiply(w, rows, M, range, p.dtype, y, thread_scratch());
        });
      }
    }
  }
}

void dequantize(const DequantizeProblem& problem,
                const uint32_t* w,
                const void* scales,
                const void* biases,
                void* out) {
  const Kernels& kernels = isa().kernels;
  Weights weights{reinterpret_cast<const uint8_t*>(w),
                  static_cast<const uint8_t*>(scales),
                  static_cast<const uint8_t*>(biases),
                  problem.rows,
                  problem.K,
                  problem.format,
                  problem.scale_dtype};
  int step = std::max(1, kDequantizePiece / problem.K);
  parallel_for((problem.rows + step - 1) / step, [&](int i) {
    Range rows{i * step, std::min(problem.rows, (i + 1) * step)};
    kernels.dequantize(weights, rows, problem.dtype, out);
  });
}

}  // namespace nibble::cpu

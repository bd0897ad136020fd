#include "csrc/cpu/layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "csrc/core/cpu_planner.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/rotations.h"
#include "csrc/cpu/scratch.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

const uint8_t* row_of(const RowGrid& x, Dtype dtype, int64_t row) {
  int64_t k = row % x.shape[2], j = row / x.shape[2] % x.shape[1];
  int64_t i = row / x.shape[2] / x.shape[1];
  int64_t at = i * x.strides[0] + j * x.strides[1] + k * x.strides[2];
  return static_cast<const uint8_t*>(x.data) + at * int64_t(size_of(dtype));
}

// Calls body(begin, end) on all threads for chunks of 0..count, each of about
// kParallelElements elements.
template <typename Fn>
void by_chunks(int64_t count, int64_t elements_each, Fn&& body) {
  int64_t step = std::max<int64_t>(1, kParallelElements / elements_each);
  int64_t chunks = (count + step - 1) / step;
  parallel_for(static_cast<int>(chunks),
               [&](int i) { body(i * step, std::min(count, (i + 1) * step)); });
}

// The parts of a row, so that all threads work on one row of a whole
// vocabulary.
int64_t parts_of(int64_t D) {
  return (D + kParallelElements - 1) / kParallelElements;
}

// Calls body(i, part, count) on all threads for the parts of x [rows, D], which
// are numbered row after row.
template <typename Fn>
void by_parts(Dtype dtype, const void* x, int64_t rows, int64_t D, Fn&& body) {
  int64_t parts = parts_of(D);
  by_chunks(rows * parts,
            std::min(D, kParallelElements),
            [&](int64_t first, int64_t last) {
              for (int64_t i = first; i < last; ++i) {
                int64_t begin = i % parts * kParallelElements;
                int64_t at = (i / parts * D + begin) * int64_t(size_of(dtype));
                body(i,
                     static_cast<const uint8_t*>(x) + at,
                     std::min(kParallelElements, D - begin));
              }
            });
}

}  // namespace

std::vector<float> as_floats(Dtype dtype, const void* x, int count) {
  std::vector<float> floats(x ? whole_vectors(count) : 0);
  if (x) {
    isa().layers.widen(
        dtype, static_cast<const uint8_t*>(x), count, floats.data());
  }
  return floats;
}

void rms_norm(const RmsNorm& p, const RowGrid& x, const void* weight, void* y) {
  const LayerKernels& kernels = isa().layers;
  int width = whole_vectors(p.D);
  std::vector<float> weights = as_floats(p.weight_dtype, weight, p.D);
  by_chunks(x.size(), p.D, [&](int64_t begin, int64_t end) {
    float* scratch = thread_floats(width);
    for (int64_t r = begin; r < end; ++r) {
      kernels.rms_norm(
          p.dtype,
          row_of(x, p.dtype, r),
          weight ? weights.data() : nullptr,
          p.D,
          p.eps,
          p.out_dtype,
          static_cast<uint8_t*>(y) + r * p.D * size_of(p.out_dtype),
          scratch);
    }
  });
}

void layer_norm(const LayerNorm& p,
                const RowGrid& x,
                const void* weight,
                const void* bias,
                void* y) {
  const LayerKernels& kernels = isa().layers;
  std::vector<float> weights = as_floats(p.weight_dtype, weight, p.D);
  std::vector<float> biases = as_floats(p.bias_dtype, bias, p.D);
  by_chunks(x.size(), p.D, [&](int64_t begin, int64_t end) {
    float* scratch = thread_floats(whole_vectors(p.D));
    for (int64_t r = begin; r < end; ++r) {
      kernels.layer_norm(
          p.dtype,
          row_of(x, p.dtype, r),
          weight ? weights.data() : nullptr,
          bias ? biases.data() : nullptr,
          p.D,
          p.eps,
          p.out_dtype,
          static_cast<uint8_t*>(y) + r * p.D * size_of(p.out_dtype),
          scratch);
    }
  });
}

void activate(const ActivationOptions& options,
              Dtype dtype,
              const void* gate,
              const void* up,
              size_t count,
              void* y) {
  const LayerKernels& kernels = isa().layers;
  by_chunks(count, 1, [&](int64_t begin, int64_t end) {
    size_t at = begin * size_of(dtype);
    const uint8_t* factor = static_cast<const uint8_t*>(up);
    kernels.activate(options,
                     dtype,
                     static_cast<const uint8_t*>(gate) + at,
                     factor ? factor + at : nullptr,
                     end - begin,
                     static_cast<uint8_t*>(y) + at);
  });
}

void rope(const Rope& p,
          const RowGrid& x,
          const int32_t* offsets,
          int64_t offset_stride,
          const int64_t (&y_strides)[3],
          void* y) {
  const LayerKernels& kernels = isa().layers;
  int heads = x.shape[1], L = x.shape[2];
  int half = p.dims / 2, width = whole_vectors(half);
  size_t size = size_of(p.dtype);
  int blocks = (L + kPositions - 1) / kPositions;
  size_t table = size_t{2} * kPositions * width;
  auto rotate_block = [&](int64_t b, int block) {
    float* scratch = thread_floats(table + 2 * whole_vectors(p.dims));
    int first = block * kPositions, count = std::min(kPositions, L - first);
    int64_t position = int64_t{offsets[b * offset_stride]} + first;
    const float* rotations = scratch;
    if (count == 1) {
      rotations = recent_rotation(p, position);
    } else {
      fill_rotations(p, position, count, scratch);
    }
    for (int h = 0; h < heads; ++h) {
      for (int l = 0; l < count; ++l) {
        int64_t row = (b * heads + h) * L + first + l;
        const uint8_t* from = row_of(x, p.dtype, row);
        int64_t at =
            b * y_strides[0] + h * y_strides[1] + (first + l) * y_strides[2];
        uint8_t* to = static_cast<uint8_t*>(y) + at * int64_t(size);
        const float* rotation = rotations + size_t{2} * l * width;
        kernels.rotate(p.dtype,
                       from,
                       rotation,
                       rotation + width,
                       half,
                       p.traditional,
                       to,
                       scratch + table);
        std::memmove(
            to + p.dims * size, from + p.dims * size, (p.D - p.dims) * size);
      }
    }
  };
  int64_t positions = std::min(kPositions, L);
  by_chunks(int64_t{x.shape[0]} * blocks,
            positions * heads * p.D,
            [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) {
                rotate_block(i / blocks, static_cast<int>(i % blocks));
              }
            });
}

void round(Dtype dtype, const float* x, size_t count, void* y) {
  const LayerKernels& kernels = isa().layers;
  by_chunks(count, 1, [&](int64_t begin, int64_t end) {
    kernels.add_and_round(dtype,
                          x + begin,
                          static_cast<int>(end - begin),
                          nullptr,
                          nullptr,
                          static_cast<uint8_t*>(y) + begin * size_of(dtype));
  });
}

void log_sum_exp(Dtype dtype, const void* x, int64_t rows, int64_t D, void* y) {
  const LayerKernels& kernels = isa().layers;
  struct Part {
    float largest, sum;
  };
  int64_t parts = parts_of(D);
  std::vector<Part> found(rows * parts);
  by_parts(
      dtype, x, rows, D, [&](int64_t i, const uint8_t* part, int64_t count) {
        kernels.sum_exponentials(
            dtype, part, count, &found[i].largest, &found[i].sum);
      });
  std::vector<float> results(whole_vectors(static_cast<int>(rows)));
  for (int64_t row = 0; row < rows; ++row) {
    const Part* part = &found[row * parts];
    float largest = part[0].largest;
    bool nan = false;
    for (int64_t i = 0; i < parts; ++i) {
      largest = std::max(largest, part[i].largest);
      nan = nan || std::isnan(part[i].sum);
    }
    if (nan || std::isinf(largest)) {
      results[row] = nan ? NAN : largest;
      continue;
    }
    double sum = 0;
    for (int64_t i = 0; i < parts; ++i) {
      sum += part[i].sum * std::exp(double{part[i].largest} - largest);
    }
    results[row] = static_cast<float>(largest + std::log(sum));
  }
  kernels.add_and_round(dtype,
                        results.data(),
                        static_cast<int>(rows),
                        nullptr,
                        nullptr,
                        static_cast<uint8_t*>(y));
}

void arg_max(Dtype dtype, const void* x, int64_t rows, int64_t D, uint32_t* y) {
  const LayerKernels& kernels = isa().layers;
  struct Part {
    float largest;
    size_t place;
  };
  int64_t parts = parts_of(D);
  std::vector<Part> found(rows * parts);
  by_parts(
      dtype, x, rows, D, [&](int64_t i, const uint8_t* part, int64_t count) {
        kernels.find_largest(
            dtype, part, count, &found[i].largest, &found[i].place);
      });
  for (int64_t row = 0; row < rows; ++row) {
    const Part* part = &found[row * parts];
    int64_t best = 0;
    for (int64_t i = 1; i < parts && !std::isnan(part[best].largest); ++i) {
      if (!(part[i].largest <= part[best].largest)) best = i;
    }
    y[row] = static_cast<uint32_t>(best * kParallelElements + part[best].place);
  }
}

}  // namespace nibble::cpu

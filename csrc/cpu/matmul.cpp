#include "csrc/cpu/matmul.h"

#include <vector>

#include "csrc/cpu/half.h"

namespace nibble::cpu {
namespace {

// Calls fn with a value of the C++ type that `dtype` names.
template <typename Fn>
void with_type(Dtype dtype, Fn&& fn) {
  switch (dtype) {
    case Dtype::kFloat32:
      return fn(float{});
    case Dtype::kFloat16:
      return fn(Float16{});
    case Dtype::kBFloat16:
      return fn(BFloat16{});
  }
}

template <typename S>
void dequantize_row(const uint32_t* w,
                    const S* scales,
                    const S* biases,
                    int K,
                    QuantFormat format,
                    float* out) {
  uint32_t mask = (1u << format.bits) - 1;
  int per_word = 32 / format.bits;
  for (int k = 0; k < K; ++k) {
    uint32_t q = w[k / per_word] >> (k % per_word * format.bits) & mask;
    int g = k / format.group_size;
    out[k] = to_float(scales[g]) * static_cast<float>(q) + to_float(biases[g]);
  }
}

template <typename T, typename S>
void matmul_typed(const MatmulProblem& p, const MatmulOperands& o) {
  size_t words = p.format.words_per_row(p.K);
  size_t groups = p.format.groups_per_row(p.K);
  int in = p.transpose ? p.K : p.N, out = p.transpose ? p.N : p.K;
  std::vector<float> row(p.K);
  std::vector<float> sums(static_cast<size_t>(p.M) * out);
  for (int b = 0; b < p.batch.size; ++b) {
    size_t matrix = b / p.batch.repeat % p.batch.count;
    const T* x = static_cast<const T*>(o.x) + size_t(b) * p.M * in;
    T* y = static_cast<T*>(o.y) + size_t(b) * p.M * out;
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int n = 0; n < p.N; ++n) {
      size_t r = matrix * p.N + n;
      dequantize_row(o.w + r * words,
                     static_cast<const S*>(o.scales) + r * groups,
                     static_cast<const S*>(o.biases) + r * groups,
                     p.K,
                     p.format,
                     row.data());
      for (int m = 0; m < p.M; ++m) {
        if (p.transpose) {
          float sum = 0;
          for (int k = 0; k < p.K; ++k) {
            sum += row[k] * to_float(x[size_t(m) * in + k]);
          }
          sums[size_t(m) * out + n] = sum;
        } else {
          float scale = to_float(x[size_t(m) * in + n]);
          for (int k = 0; k < p.K; ++k) {
            sums[size_t(m) * out + k] += scale * row[k];
          }
        }
      }
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      from_float(sums[i], y[i]);
    }
  }
}

}  // namespace

void matmul(const MatmulProblem& problem, const MatmulOperands& operands) {
  with_type(problem.dtype, [&](auto t) {
    with_type(problem.scale_dtype, [&](auto s) {
      matmul_typed<decltype(t), decltype(s)>(problem, operands);
    });
  });
}

void dequantize(const DequantizeProblem& problem,
                const uint32_t* w,
                const void* scales,
                const void* biases,
                void* out) {
  with_type(problem.dtype, [&](auto t) {
    with_type(problem.scale_dtype, [&](auto s) {
      using T = decltype(t);
      using S = decltype(s);
      size_t words = problem.format.words_per_row(problem.K);
      size_t groups = problem.format.groups_per_row(problem.K);
      std::vector<float> row(problem.K);
      for (size_t r = 0; r < size_t(problem.rows); ++r) {
        dequantize_row(w + r * words,
                       static_cast<const S*>(scales) + r * groups,
                       static_cast<const S*>(biases) + r * groups,
                       problem.K,
                       problem.format,
                       row.data());
        for (int k = 0; k < problem.K; ++k) {
          from_float(row[k], static_cast<T*>(out)[r * problem.K + k]);
        }
      }
    });
  });
}

}  // namespace nibble::cpu

#include "csrc/cpu/attention_gradient.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/scratch.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// Queries and keys that meet in a block: its scores and their gradients are 128
// KB, a part of any second-level cache.
constexpr int kQueries = 64;
constexpr int kKeys = kColumnBlockK;

// One head of queries.
class Head {
 public:
  Head(const AttentionGradient& p,
       const float* q,
       const float* k,
       const float* v,
       const float* dy)
      : p_(p), q_(q), k_(k), dy_(dy) {
    size_t blocks = (p.S + kKeys - 1) / kKeys;
    size_t scores = blocks * kQueries * kKeys;
    float* at = thread_floats(blocks * kKeys * (p.D + p.Dv) + 2 * scores);
    transposed_k_ = at;
    transposed_v_ = transposed_k_ + blocks * kKeys * p.D;
    probabilities_ = transposed_v_ + blocks * kKeys * p.Dv;
    gradients_ = probabilities_ + scores;
    transpose(k, p.D, transposed_k_);
    transpose(v, p.Dv, transposed_v_);
  }

  void compute(float* dq, float* dk, float* dv) {
    std::fill_n(dq, size_t(p_.L) * p_.D, 0.0F);
    std::fill_n(dk, size_t(p_.S) * p_.D, 0.0F);
    std::fill_n(dv, size_t(p_.S) * p_.Dv, 0.0F);
    for (int l = 0; l < p_.L; l += kQueries) {
      int rows = std::min(kQueries, p_.L - l);
      int keys = visible(l + rows - 1);
      const float* q = q_ + size_t(l) * p_.D;
      const float* dy = dy_ + size_t(l) * p_.Dv;
      multiply(q, p_.D, rows, keys, transposed_k_, probabilities_);
      multiply(dy, p_.Dv, rows, keys, transposed_v_, gradients_);
      for (int r = 0; r < rows; ++r) differentiate(r, l + r, keys);
      for (int key = 0; key < keys; key += kKeys) {
        int count = std::min(kKeys, keys - key);
        const float* p = probabilities_ + size_t(key) * kQueries;
        const float* ds = gradients_ + size_t(key) * kQueries;
        const float* k = k_ + size_t(key) * p_.D;
        add({k, p_.D, p_.D, count, ds, kKeys, 1, rows, dq + l * p_.D, p_.D});
        float* to_k = dk + size_t(key) * p_.D;
        float* to_v = dv + size_t(key) * p_.Dv;
        add({q, p_.D, p_.D, rows, ds, 1, kKeys, count, to_k, p_.D});
        add({dy, p_.Dv, p_.Dv, rows, p, 1, kKeys, count, to_v, p_.Dv});
      }
    }
  }

 private:
  static void add(const FloatProduct& product) {
    isa().kernels.add_products(product);
  }

  // Returns the number of keys that query l sees.
  int visible(int l) const {
    return p_.causal ? std::clamp(p_.S - p_.L + l + 1, 0, p_.S) : p_.S;
  }

  // out = blocks [width, kKeys] of x [S, width], the last one with zeros.
  void transpose(const float* x, int width, float* out) const {
    for (int key = 0; key < p_.S; key += kKeys) {
      for (int d = 0; d < width; ++d) {
        for (int i = 0; i < kKeys; ++i) {
          *out++ = key + i < p_.S ? x[size_t(key + i) * width + d] : 0;
        }
      }
    }
  }

  // out = blocks [kQueries, kKeys] of x @ panel, for the first `keys` keys.
  static void multiply(const float* x,
                       int width,
                       int rows,
                       int keys,
                       const float* panel,
                       float* out) {
    std::fill_n(out, size_t(keys + kKeys - 1) / kKeys * kKeys * kQueries, 0.0F);
    for (int key = 0; key < keys; key += kKeys) {
      add({panel + size_t(key) * width,
           kKeys,
           (std::min(kKeys, keys - key) + 15) / 16 * 16,
           width,
           x,
           width,
           1,
           rows,
           out + size_t(key) * kQueries,
           kKeys});
    }
  }

  // Turns row r of scores into probabilities, and of their gradients into the
  // scores' gradients. Query l sees the first of `keys` keys.
  void differentiate(int r, int l, int keys) {
    int seen = visible(l);
    auto by_blocks = [&](auto&& body) {
      for (int key = 0; key < seen; key += kKeys) {
        size_t at = (size_t(key) * kQueries) + size_t(r) * kKeys;
        body(probabilities_ + at, gradients_ + at, std::min(kKeys, seen - key));
      }
    };
    float largest = -INFINITY, sum = 0, whole = 0;
    by_blocks([&](const float* p, const float*, int count) {
      for (int i = 0; i < count; ++i) largest = std::max(largest, p[i]);
    });
    by_blocks([&](float* p, const float*, int count) {
      for (int i = 0; i < count; ++i) {
        p[i] = std::exp((p[i] - largest) * p_.scale);
        sum += p[i];
      }
    });
    by_blocks([&](float* p, const float* ds, int count) {
      for (int i = 0; i < count; ++i) {
        p[i] /= sum;
        whole += p[i] * ds[i];
      }
    });
    by_blocks([&](const float* p, float* ds, int count) {
      for (int i = 0; i < count; ++i) {
        ds[i] = p[i] * (ds[i] - whole) * p_.scale;
      }
    });
    for (int key = seen; key < keys; ++key) {
      size_t at = (size_t(key / kKeys) * kQueries + r) * kKeys + key % kKeys;
      probabilities_[at] = gradients_[at] = 0;
    }
  }

  const AttentionGradient& p_;
  const float *q_, *k_, *dy_;
  float *transposed_k_, *transposed_v_, *probabilities_, *gradients_;
};

}  // namespace

void attention_gradient(const AttentionGradient& p,
                        const AttentionGradientOperands& o) {
  parallel_for(p.B * p.heads, [&](int i) {
    size_t shared =
        i / p.heads * p.kv_heads + i % p.heads / (p.heads / p.kv_heads);
    size_t q = size_t(p.L) * p.D, dy = size_t(p.L) * p.Dv;
    size_t k = size_t(p.S) * p.D, v = size_t(p.S) * p.Dv;
    Head head(
        p, o.q + i * q, o.k + shared * k, o.v + shared * v, o.dy + i * dy);
    head.compute(o.dq + i * q, o.dk + i * k, o.dv + i * v);
  });
}

}  // namespace nibble::cpu

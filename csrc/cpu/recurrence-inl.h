// Linear recurrences of one head, written once against a SIMD facade V.
// Everything has internal linkage, as in kernels-inl.h.
#pragma once

#include "csrc/cpu/layers-inl.h"
#include "csrc/cpu/product-inl.h"

namespace nibble::cpu {
namespace {

// kR rows of the state from one position to the next, in two passes over a row:
// what the rule reads of the state, then its change and the result.
template <class V, Rule kRule, bool kVectors, int kR>
void recur_rows(const RecurArgs& args, int row) {
  using F = typename V::F;
  int width = args.width;
  float* state = args.state + static_cast<size_t>(row) * width;
  for (int t = 0; t < args.positions; ++t) {
    const float* v = args.v + size_t(t) * args.rows + row;
    float* y = args.y + size_t(t) * args.rows + row;
    if (args.mask && !args.mask[t]) {
      for (int r = 0; r < kR; ++r) y[r] = args.skip * v[r];
      continue;
    }
    const float* k = args.k + size_t(t) * width;
    const float* q = args.q + size_t(t) * width;
    const float* decays = args.decay + size_t(t) * (kVectors ? width : 1);
    const float* removed = args.removed + size_t(t) * width;
    const float* added = args.added + size_t(t) * width;
    F all = V::set1(decays[0]);
    auto decay = [&](int i) { return kVectors ? V::load(decays + i) : all; };
    float found[4] = {0, 0, 0, 0};
    if constexpr (kRule != Rule::kAdd) {
      F sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
      for (int i = 0; i < width; i += V::kLanes) {
        F key = V::load((kRule == Rule::kDelta ? k : removed) + i);
        F d = decay(i);
        for (int r = 0; r < kR; ++r) {
          F s = V::load(state + r * width + i);
          if constexpr (kRule == Rule::kDelta) {
            s = V::mul(s, d);
            V::store(state + r * width + i, s);
          }
          sums[r] = V::fma(s, key, sums[r]);
        }
      }
      V::sum4(sums[0], sums[1], sums[2], sums[3], found);
    }
    float beta = kRule == Rule::kReplace ? 1 : args.beta[t];
    F change[kR], part[kR],
        sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    for (int r = 0; r < kR; ++r) {
      change[r] =
          V::set1((kRule == Rule::kDelta ? v[r] - found[r] : v[r]) * beta);
      part[r] = V::set1(found[r]);
    }
    for (int i = 0; i < width; i += V::kLanes) {
      F key = V::load(k + i), query = V::load(q + i);
      F d = decay(i);
      F other = kRule == Rule::kReplace ? V::load(added + i) : key;
      for (int r = 0; r < kR; ++r) {
        F s = V::load(state + r * width + i);
        if constexpr (kRule != Rule::kDelta) s = V::mul(s, d);
        s = V::fma(key, change[r], s);
        if constexpr (kRule == Rule::kReplace) s = V::fma(other, part[r], s);
        V::store(state + r * width + i, s);
        sums[r] = V::fma(s, query, sums[r]);
      }
    }
    float results[4];
    V::sum4(sums[0], sums[1], sums[2], sums[3], results);
    for (int r = 0; r < kR; ++r) y[r] = results[r] + args.skip * v[r];
  }
}

template <class V>
void recur(const RecurArgs& args) {
  auto run = [&](auto rule, auto vectors) {
    by_rows<4>(args.rows, [&](auto r, int row) {
      recur_rows<V,
                 static_cast<Rule>(decltype(rule)::value),
                 decltype(vectors)::value != 0,
                 decltype(r)::value>(args, row);
    });
  };
  switch (args.rule) {
    case Rule::kAdd:
      return run(Int<int(Rule::kAdd)>{}, Int<0>{});
    case Rule::kDelta:
      return args.vector_decay ? run(Int<int(Rule::kDelta)>{}, Int<1>{})
                               : run(Int<int(Rule::kDelta)>{}, Int<0>{});
    case Rule::kReplace:
      return run(Int<int(Rule::kReplace)>{}, Int<1>{});
  }
}

// One position of `channels` channels with a state of `width` numbers each:
//   s[c] = exp(delta[c] A[c]) s[c] + delta[c] x[c] B,  y[c] = s[c] . C + D[c]
//   x[c]
// Lanes run over a row of the state.
template <class V>
void scan(const ScanArgs& args) {
  using F = typename V::F;
  for (int c = 0; c < args.channels; ++c) {
    float* state = args.state + size_t(c) * args.width;
    const float* rates = args.rates + size_t(c) * args.width;
    for (int t = 0; t < args.positions; ++t) {
      float delta = args.delta[size_t(t) * args.channels + c];
      float x = args.x[size_t(t) * args.channels + c];
      const float* b = args.b + size_t(t) * args.width;
      const float* q = args.c + size_t(t) * args.width;
      F step = V::set1(delta), change = V::set1(delta * x), sum = V::zero();
      for (int i = 0; i < args.width; i += V::kLanes) {
        F s = V::mul(V::load(state + i),
                     exp<V>(V::mul(step, V::load(rates + i))));
        s = V::fma(change, V::load(b + i), s);
        V::store(state + i, s);
        sum = V::fma(s, V::load(q + i), sum);
      }
      args.y[size_t(t) * args.channels + c] = V::sum(sum) + args.skip[c] * x;
    }
  }
}

// y [positions, channels] = bias + the sum over j of w[j] * x[t + j], then the
// activation. Rows of x and y are `stride` elements apart, w [taps, channels]
// and bias have whole vectors.
template <class V>
void convolve(const ConvolveArgs& args) {
  using F = typename V::F;
  with_dtype(args.dtype, [&](auto d) {
    constexpr Dtype kDtype = decltype(d)::value;
    constexpr size_t kSize = size_of(kDtype);
    size_t row = size_t(args.stride) * kSize;
    for (int t = 0; t < args.positions; ++t) {
      for (int c = 0; c < args.channels; c += V::kLanes) {
        int n = smaller(V::kLanes, args.channels - c);
        F sum = V::load(args.bias + c);
        for (int j = 0; j < args.taps; ++j) {
          const uint8_t* x = args.x + size_t(t + j) * row + size_t(c) * kSize;
          sum = V::fma(V::template load_as_float<kDtype>(x, n),
                       V::load(args.w + size_t(j) * args.channel_room + c),
                       sum);
        }
        if (args.silu) sum = silu<V>(sum);
        V::template store_rounded<kDtype>(
            args.y + size_t(t) * row + size_t(c) * kSize, sum, n);
      }
    }
  });
}

}  // namespace
}  // namespace nibble::cpu

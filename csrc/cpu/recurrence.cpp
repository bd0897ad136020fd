#include "csrc/cpu/recurrence.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "csrc/core/cpu_planner.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/scratch.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// Positions whose rows are float32 at a time, and rows of the state that a
// thread takes along: with heads of 128 they take 64 and 16 KB.
constexpr int kPositions = 64;
constexpr int kStateRows = 32;
// Channels of a scan or a convolution that a thread takes along.
constexpr int kChannels = 64;

int parts(int count, int step) {
  return (count + step - 1) / step;
}

const uint8_t* row_of(const RowsOf& x, int64_t i, int64_t j, int64_t k) {
  const RowGrid& g = x.grid;
  int64_t at = i * g.strides[0] + j * g.strides[1] + k * g.strides[2];
  return static_cast<const uint8_t*>(g.data) + at * int64_t(size_of(x.dtype));
}

// to [count] = `count` elements of a row from element `first` on, then zeros up
// to `room`.
void widen(const RowsOf& x,
           const uint8_t* row,
           int first,
           int count,
           int room,
           float* to) {
  // The kernel writes whole vectors.
  isa().layers.widen(x.dtype, row + first * size_of(x.dtype), count, to);
  std::fill(to + count, to + room, 0.0f);
}

struct Part {
  int64_t b;
  int head, first, rows;
};

// The rows `part` of a head's state, over all positions.
void recur_part(const Recurrence& p, const Part& part) {
  int width = whole_vectors(p.Dk), room = whole_vectors(kStateRows);
  size_t block = size_t{kPositions} * width;
  bool replace = p.rule == Rule::kReplace;
  float* q = thread_floats(5 * block + 2 * size_t{kPositions} * room +
                           size_t{kStateRows} * width + 2 * kPositions);
  float *k = q + block, *removed = k + block, *added = removed + block;
  float *decays = added + block, *v = decays + block;
  float *y = v + kPositions * room, *state = y + kPositions * room;
  float *decay = state + kStateRows * width, *beta = decay + kPositions;
  uint8_t mask[kPositions];
  int64_t row = (part.b * p.Hv + part.head) * p.Dv + part.first;
  for (int r = 0; r < part.rows; ++r) {
    float* to = state + r * width;
    std::fill(to, to + width, 0.0f);
    if (p.state) {
      std::copy_n(p.state + (row + r) * p.Dk, p.Dk, to);
    }
  }
  int head = part.head / (p.Hv / p.Hk);
  for (int t = 0; t < p.T; t += kPositions) {
    int count = std::min(kPositions, p.T - t);
    for (int i = 0; i < count; ++i) {
      auto fill = [&](const RowsOf& x, int h, float* to) {
        widen(x, row_of(x, part.b, t + i, h), 0, p.Dk, width, to + i * width);
      };
      fill(p.q, head, q);
      fill(p.k, head, k);
      if (replace) {
        fill(p.removed, head, removed);
        fill(p.added, head, added);
      }
      if (!p.decay) fill(p.decay_rows, part.head, decays);
      int64_t at = (part.b * p.T + t + i) * p.Hv + part.head;
      if (p.decay) decay[i] = p.decay[at];
      if (p.beta) beta[i] = p.beta[at];
      if (p.mask) mask[i] = p.mask[part.b * p.T + t + i];
      // Rows of v lie side by side, so the whole vectors that are written may
      // reach into the next row, which is filled later.
      widen(p.v,
            row_of(p.v, part.b, t + i, part.head),
            part.first,
            part.rows,
            part.rows,
            v + i * part.rows);
    }
    isa().layers.recur({p.rule,
                        count,
                        part.rows,
                        width,
                        q,
                        k,
                        removed,
                        added,
                        p.decay == nullptr,
                        p.decay ? decay : decays,
                        beta,
                        p.mask ? mask : nullptr,
                        p.skip ? p.skip[part.head] : 0,
                        v,
                        y,
                        state});
    for (int i = 0; i < count; ++i) {
      int64_t at = ((part.b * p.T + t + i) * p.Hv + part.head) * p.Dv;
      isa().layers.add_and_round(
          p.dtype,
          y + i * part.rows,
          part.rows,
          nullptr,
          nullptr,
          static_cast<uint8_t*>(p.y) + (at + part.first) * size_of(p.dtype));
    }
  }
  for (int r = 0; r < part.rows; ++r) {
    std::copy_n(state + r * width, p.Dk, p.new_state + (row + r) * p.Dk);
  }
}

}  // namespace

void recur(const Recurrence& p) {
  int each = parts(p.Dv, kStateRows);
  parallel_for(p.B * p.Hv * each, [&](int i) {
    int first = i % each * kStateRows, head = i / each;
    recur_part(
        p,
        {head / p.Hv, head % p.Hv, first, std::min(kStateRows, p.Dv - first)});
  });
}

void gates(const StateSpaceGates& p) {
  int64_t count = p.rows * p.heads, step = kParallelElements / 16;
  parallel_for(static_cast<int>((count + step - 1) / step), [&](int part) {
    int64_t end = std::min(count, (part + 1) * step);
    for (int64_t i = part * step; i < end; ++i) {
      int64_t head = i % p.heads;
      float v = p.dt[i] + p.dt_bias[head];
      // log(1 + e^v), without overflow.
      float soft = std::max(v, 0.0f) + std::log1p(std::exp(-std::fabs(v)));
      p.beta[i] = std::min(std::max(soft, p.least), p.most);
      p.decay[i] = std::exp(-std::exp(p.log_rates[head]) * p.beta[i]);
    }
  });
}

void scan(const SelectiveScan& p) {
  int each = parts(p.channels, kChannels), width = whole_vectors(p.N);
  parallel_for(p.B * each, [&](int part) {
    int64_t b = part / each;
    int first = part % each * kChannels;
    int channels = std::min(kChannels, p.channels - first);
    size_t block = size_t{kPositions} * kChannels;
    size_t rows = size_t{kPositions} * width, all = size_t{kChannels} * width;
    float* delta = thread_floats(3 * block + 2 * rows + 2 * all + kChannels);
    float *x = delta + block, *y = x + block, *bs = y + block, *cs = bs + rows;
    float *rates = cs + rows, *state = rates + all;
    float* skip = state + all;
    std::fill(rates, rates + 2 * all, 0.0f);
    for (int i = 0; i < channels; ++i) {
      int64_t at = (b * p.channels + first + i) * p.N;
      std::copy_n(p.rates + int64_t{first + i} * p.N, p.N, rates + i * width);
      if (p.state) std::copy_n(p.state + at, p.N, state + i * width);
      skip[i] = p.skip[first + i];
    }
    for (int t = 0; t < p.T; t += kPositions) {
      int count = std::min(kPositions, p.T - t);
      for (int i = 0; i < count; ++i) {
        widen(p.b, row_of(p.b, b, 0, t + i), 0, p.N, width, bs + i * width);
        widen(p.c, row_of(p.c, b, 0, t + i), 0, p.N, width, cs + i * width);
        for (auto [from, to] : {std::pair{&p.delta, delta}, {&p.x, x}}) {
          const uint8_t* row = row_of(*from, b, 0, t + i);
          widen(*from, row, first, channels, channels, to + i * channels);
        }
      }
      isa().layers.scan(
          {count, channels, width, delta, x, bs, cs, rates, skip, state, y});
      for (int i = 0; i < count; ++i) {
        int64_t at = (b * p.T + t + i) * p.channels + first;
        isa().layers.add_and_round(
            p.dtype,
            y + i * channels,
            channels,
            nullptr,
            nullptr,
            static_cast<uint8_t*>(p.y) + at * size_of(p.dtype));
      }
    }
    for (int i = 0; i < channels; ++i) {
      int64_t at = (b * p.channels + first + i) * p.N;
      std::copy_n(state + i * width, p.N, p.new_state + at);
    }
  });
}

void convolve(const DepthwiseConvolution& p) {
  // A chunk is some channels over some positions; enough of them for all
  // threads, none too small.
  int each = parts(p.C, kChannels), steps = parts(p.T, kPositions);
  parallel_for(p.B * each * steps, [&](int part) {
    int first = part % each * kChannels, t = part / each % steps * kPositions;
    int64_t b = part / each / steps;
    int channels = std::min(kChannels, p.C - first);
    int count = std::min(kPositions, p.T - t);
    float* w = thread_floats(size_t{kChannels} * (p.taps + 1));
    float* bias = w + size_t{kChannels} * p.taps;
    std::fill(w, bias + kChannels, 0.0f);
    for (int c = 0; c < channels; ++c) {
      for (int j = 0; j < p.taps; ++j) {
        w[j * kChannels + c] = p.w[int64_t{first + c} * p.taps + j];
      }
      if (p.bias) bias[c] = p.bias[first + c];
    }
    int64_t from = (b * (p.T + p.taps - 1) + t) * p.C + first;
    int64_t to = (b * p.T + t) * p.C + first;
    size_t size = size_of(p.dtype);
    isa().layers.convolve({p.dtype,
                           count,
                           channels,
                           p.taps,
                           kChannels,
                           p.C,
                           static_cast<const uint8_t*>(p.x) + from * size,
                           w,
                           bias,
                           p.silu,
                           static_cast<uint8_t*>(p.y) + to * size});
  });
}

}  // namespace nibble::cpu

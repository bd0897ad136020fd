// Packed words by whole cache lines: four lanes fetch 64 bytes of a row at
// once, 16 each, and exchange the words that each of them dequantizes.
//
// A row is divided into lines of 16 words from its beginning. The words that
// four lanes dequantize together are a window on the row, which lies in one
// line or in two and moves by its own length. A line is fetched with the first
// window that overlaps it, and kept until the last one:
//
//   3 bits       [ line 0: words 0 .. 15        ][ line 1: words 16 .. 31
//   windows      [0 .. 2][3 .. 5] ... [12 .. 14][15     17][18 ...
//   of a lane    0     0 .. 3   4 .. 7   8 .. 11   12 .. 15    of its line
//
// If a window lies in two lines, lanes keep the earlier one beside the later.
#pragma once

#include <metal_simdgroup>
#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/packing.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

NIBBLE_INLINE constexpr int line_words() {
  return 16;
}

// Words [begin, end) of a row that a simdgroup may fetch.
struct WordRange {
  int begin;
  int end;
};

// Fetches words first .. first + 3 of a row, as far as they are in range;
// `first` is a multiple of four.
template <typename Q>
NIBBLE_INLINE void fetch_four(const thread QuantizedMatrix<Q>& weight,
                              WordRange range,
                              int row,
                              int first,
                              thread uint* words) {
  const device uint* from = weight.words_at(row, 0) + first;
  // Rows of other widths and lengths may begin off a 16-byte boundary, and end
  // inside a lane's share.
  if (words_of(Q::kGroupSize, Q::kBits) % 4 == 0 ||
      words_of(weight.K, Q::kBits) % 4 == 0) {
    if (first >= range.begin && first < range.end) {
      load_words<4>(from, words);
    }
    return;
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; ++i) {
    if (first + i >= range.begin && first + i < range.end) {
      words[i] = from[i];
    }
  }
}

// Fetches this lane's four words of line `line` of a row, as far as they are in
// range.
template <typename Q>
NIBBLE_INLINE void fetch_line(const thread QuantizedMatrix<Q>& weight,
                              WordRange range,
                              int row,
                              int line,
                              int quad_lane,
                              thread uint* words) {
  const int first = line * line_words() + quad_lane * 4;
  fetch_four(weight, range, row, first, words);
}

// Pass a lane's four words of a line to a lane of another simdgroup.
NIBBLE_INLINE void hand_line(const thread uint* words, threadgroup uint4* to) {
  *to = uint4(words[0], words[1], words[2], words[3]);
}

NIBBLE_INLINE void take_line(const threadgroup uint4* from,
                             thread uint* words) {
  const uint4 v = *from;
  words[0] = v.x;
  words[1] = v.y;
  words[2] = v.z;
  words[3] = v.w;
}

// True if every window of this length lies in at most two lines. A window
// begins at a multiple of its length, so at a multiple of this power of two in
// a line.
NIBBLE_INLINE constexpr bool fits_two_lines(int window_words) {
  const int power = window_words & -window_words;
  const int apart = power < line_words() ? power : line_words();
  return line_words() - apart + window_words <= 2 * line_words();
}

// Fetches the lines of a window that begins at word `window`, unless an earlier
// window has fetched them: `have` is the last line of that one (-1: none). The
// last line of the window goes to `held`. If the window begins in the line
// before it, that line goes to `before`.
template <int window_words, typename Q>
NIBBLE_INLINE void fetch_window(const thread QuantizedMatrix<Q>& weight,
                                WordRange range,
                                int row,
                                int window,
                                int have,
                                int quad_lane,
                                thread uint* before,
                                thread uint* held) {
  static_assert(fits_two_lines(window_words), "a lane keeps two lines");
  if (line_words() % window_words == 0) {
    // Each line begins with a window. Other windows have their line already. A
    // mask decides it, because shifts run at a quarter of the rate.
    if (window % line_words() == 0) {
      fetch_line(weight, range, row, window / line_words(), quad_lane, held);
    }
    return;
  }
  const int first = window / line_words();
  const int last = (window + window_words - 1) / line_words();
  if (last == have) {
    return;
  }
  if (first != last) {
    if (first == have) {
#pragma clang loop unroll(full)
      for (int i = 0; i < 4; ++i) {
        before[i] = held[i];
      }
    } else {
      fetch_line(weight, range, row, first, quad_lane, before);
    }
  }
  fetch_line(weight, range, row, last, quad_lane, held);
}

// Returns the value of lane `holder` of four lanes, of which this is lane
// `quad_lane`. If they are not a quad of the simdgroup, lanes 2 and 3 are
// `apart` from lanes 0 and 1, as in a fragment (mma.h). If `same`, the four
// have the same holder.
//
// simd_shuffle() would do the same. M1 has no instruction for it: an index that
// varies by lane takes 28 cycles there, a quad's or a xor 2 (metal-benchmarks).
template <int apart, bool same>
NIBBLE_INLINE uint value_of(uint value, int holder, int lane, int quad_lane) {
  if (apart == 2) {
    return same ? quad_broadcast(value, ushort(holder))
                : quad_shuffle(value, ushort(holder));
  }
  const uint across = simd_shuffle_xor(value, ushort(apart));
  const ushort from = ushort((lane & 2) | (holder & 1));
  const uint near = quad_shuffle(value, from);
  const uint far = quad_shuffle(across, from);
  return holder / 2 == quad_lane / 2 ? near : far;
}

// Passes each of four lanes the four words from its own `first` on, which lies
// in the window; word i arrives as passed[i % 4].
template <int window_words,  // of the four lanes together
          int apart>         // distance of lanes 2 and 3 from lanes 0 and 1
NIBBLE_INLINE void pass_words(const thread uint* before,
                              const thread uint* held,
                              int window,
                              int first,
                              int lane,
                              int quad_lane,
                              thread uint* passed) {
  // One lane holds a window that divides its four words.
  constexpr bool same = 4 % window_words == 0;
  const int begin = window % line_words();
  const bool two_lines =
      line_words() % window_words != 0 && begin + window_words > line_words();
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; ++i) {
    const int wanted = first + ((i - first) & 3);
    const int holder = (same ? window : wanted) / 4 % 4;
    // This lane holds word i of both lines, and the window has one of them.
    const bool earlier = two_lines && quad_lane * 4 + i >= begin;
    passed[i] = value_of<apart, same>(
        earlier ? before[i] : held[i], holder, lane, quad_lane);
    if (window_words > line_words()) {
      // Or both.
      const uint later =
          value_of<apart, false>(held[i], holder, lane, quad_lane);
      passed[i] = wanted < window + line_words() ? passed[i] : later;
    }
  }
}

// Returns passed[i % 4].
NIBBLE_INLINE uint passed_word(const thread uint* passed, int i) {
  const uint even = i & 2 ? passed[2] : passed[0];
  const uint odd = i & 2 ? passed[3] : passed[1];
  return i & 1 ? odd : even;
}

// Gives this lane its `count` words of a window that four lanes share.
template <int count, int apart>
NIBBLE_INLINE void share_window(const thread uint* before,
                                const thread uint* held,
                                int window,
                                int lane,
                                int quad_lane,
                                thread uint* words) {
  if (count == 4) {
    // The window is a line, and each lane has fetched its own part.
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; ++i) {
      words[i] = held[i];
    }
    return;
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < count; i += 4) {
    const int first = window + quad_lane * count + i;
    uint passed[4];
    pass_words<4 * count, apart>(
        before, held, window, first, lane, quad_lane, passed);
#pragma clang loop unroll(full)
    for (int j = 0; j < 4; ++j) {
      if (i + j < count) {
        words[i + j] = passed_word(passed, first + j);
      }
    }
  }
}

}  // namespace nibble

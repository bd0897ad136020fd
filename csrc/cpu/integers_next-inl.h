// The packed codes that integer products in tiles read next.
#pragma once

#include "csrc/cpu/packed-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

// The packed codes and parameters that are filled in next. They are fetched
// group by group while others are multiplied: all at once they would fill the
// buffers of the cache, and the products would wait.
template <class V>
class NextTiles {
 public:
  NextTiles(const Weights& w, int row, Range columns) {
    if (!w.packed) return;
    group_bytes_ = V::kLanes * packed_group_bytes(w.format, w.scale_dtype);
    bool down = columns.end == w.columns.end;
    for (int s = 0; s < 2; ++s) {
      strips_[s] = packed_strip<V>(w,
                                   row + (down ? s + 2 : s) * V::kLanes,
                                   down ? w.columns.begin : columns.end);
    }
  }

  void fetch(int strip, int group) const {
    prefetch(strips_[strip] + group * group_bytes_, group_bytes_);
  }

 private:
  const uint8_t* strips_[2] = {};
  int group_bytes_ = 0;
};

}  // namespace
}  // namespace nibble::cpu

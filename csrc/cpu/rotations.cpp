#include "csrc/cpu/rotations.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <vector>

#include "csrc/cpu/layer_kernels.h"

namespace nibble::cpu {
namespace {

// Positions that a thread keeps: several tokens of the largest batches. With
// heads of 128 they take 128 KB.
constexpr size_t kRecent = 256;
// Kinds of angles that a thread keeps: Gemma 3 has two, in turns.
constexpr size_t kKinds = 4;

// Returns the last multiple of kPositions that is not after a position.
int64_t block_start(int64_t position) {
  return (position >= 0 ? position : position - (kPositions - 1)) / kPositions *
         kPositions;
}

// out [count, 2, width] = cos and sin of the angles of consecutive positions in
// one block. Angles are formed in double precision: with floats the error of an
// angle grows with the position, to 4e-3 at 65536. From the start of its block,
// each position rotates the one before by the same angle. So a rotation has the
// same bits for every set of positions that it is computed with.
void fill_block(const Rope& p, int64_t position, int count, float* out) {
  int half = p.dims / 2, width = whole_vectors(half);
  int64_t start = block_start(position);
  int skipped = static_cast<int>(position - start);
  double log_base = p.periods ? 0 : std::log(double{p.base});
  for (int i = 0; i < half; ++i) {
    double frequency = p.scale * (p.periods ? 1 / double{p.periods[i]}
                                            : std::exp(-log_base * i / half));
    double angle = static_cast<double>(start) * frequency;
    double c = std::cos(angle), s = std::sin(angle);
    double step_c = 1, step_s = 0;
    if (skipped + count > 1) {
      step_c = std::cos(frequency);
      step_s = std::sin(frequency);
    }
    for (int l = -skipped; l < count; ++l) {
      if (l >= 0) {
        out[2 * l * width + i] = static_cast<float>(c);
        out[(2 * l + 1) * width + i] = static_cast<float>(s);
      }
      double turned = c * step_c - s * step_s;
      s = s * step_c + c * step_s;
      c = turned;
    }
  }
}

// The rotations of recent positions by angles of one kind.
class Recent {
 public:
  explicit Recent(const Rope& p)
      : dims_(p.dims),
        scale_(p.scale),
        base_(p.base),
        size_(size_t{2} * whole_vectors(p.dims / 2)),
        rotations_(kRecent * size_) {
    if (p.periods) periods_.assign(p.periods, p.periods + dims_ / 2);
  }

  // The periods are compared, not their address: memory is used again.
  bool is_of(const Rope& p) const {
    return dims_ == p.dims && scale_ == p.scale && base_ == p.base &&
           periods_.empty() == !p.periods &&
           std::equal(periods_.begin(), periods_.end(), p.periods);
  }

  const float* at(const Rope& p, int64_t position) {
    if (places_.size() == kRecent) places_.clear();
    auto [found, is_new] = places_.try_emplace(position, places_.size());
    float* rotation = rotations_.data() + found->second * size_;
    if (is_new) fill_block(p, position, 1, rotation);
    return rotation;
  }

 private:
  int dims_;
  float scale_, base_;
  std::vector<float> periods_;
  size_t size_;
  std::vector<float> rotations_;
  std::unordered_map<int64_t, size_t> places_;
};

}  // namespace

void fill_rotations(const Rope& p, int64_t position, int count, float* out) {
  int64_t next = block_start(position) + kPositions;
  int here = static_cast<int>(std::min<int64_t>(count, next - position));
  fill_block(p, position, here, out);
  if (here < count) {
    int width = whole_vectors(p.dims / 2);
    fill_block(p, next, count - here, out + int64_t{2} * here * width);
  }
}

const float* recent_rotation(const Rope& p, int64_t position) {
  thread_local std::vector<Recent> kinds;
  auto found = std::ranges::find_if(
      kinds, [&](const Recent& kind) { return kind.is_of(p); });
  if (found == kinds.end()) {
    if (kinds.size() == kKinds) kinds.erase(kinds.begin());
    found = kinds.emplace(kinds.end(), p);
  }
  return found->at(p, position);
}

}  // namespace nibble::cpu

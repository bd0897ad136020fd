#include "shadow.h"

namespace simt {

Shadow::Shadow(size_t bytes, bool across)
    : across_(across), cells_((bytes + grain_ - 1) / grain_) {}

// A barrier of the threadgroup orders two of its threads, and one of the
// simdgroup orders two of its lanes. Nothing orders the threadgroups of one
// dispatch.
bool Shadow::ordered(const Stamp& before, const Stamp& now) const {
  if (!before.known()) {
    return true;
  }
  if (before.threadgroup != now.threadgroup) {
    return !across_;
  }
  return before.thread == now.thread || before.epoch != now.epoch ||
         (before.simdgroup() == now.simdgroup() &&
          before.simdgroup_epoch != now.simdgroup_epoch);
}

Shadow::Conflict::Kind Shadow::kind(const Stamp& other,
                                    const Stamp& now) const {
  return other.threadgroup == now.threadgroup
             ? Conflict::Kind::kRace
             : Conflict::Kind::kBetweenThreadgroups;
}

// Splits cells until this access covers whole cells.
void Shadow::refine(size_t offset, size_t size) {
  while (offset % grain_ || size % grain_) {
    std::vector<Cell> finer;
    finer.reserve(2 * cells_.size());
    for (const Cell& cell : cells_) {
      finer.push_back(cell);
      finer.push_back(cell);
    }
    cells_ = std::move(finer);
    grain_ /= 2;
  }
}

Shadow::Conflict Shadow::read(size_t offset, size_t size, const Stamp& now) {
  refine(offset, size);
  Conflict found;
  for (size_t i = offset / grain_; i < (offset + size) / grain_; ++i) {
    Cell& cell = cells_[i];
    if (found.kind == Conflict::Kind::kNone) {
      bool written = across_ ? cell.written.known()
                             : cell.written.threadgroup == now.threadgroup;
      if (!written) {
        found = {Conflict::Kind::kUninitialised, i * grain_, {}, false};
      } else if (!ordered(cell.written, now)) {
        found = {kind(cell.written, now), i * grain_, cell.written, true};
      }
    }
    if (cell.read.known() && cell.read.thread != now.thread) {
      bool beside = cell.read.simdgroup() == now.simdgroup();
      (beside ? cell.read_beside : cell.read_elsewhere) = cell.read;
    }
    cell.read = now;
  }
  return found;
}

Shadow::Conflict Shadow::write(size_t offset, size_t size, const Stamp& now) {
  refine(offset, size);
  Conflict found;
  for (size_t i = offset / grain_; i < (offset + size) / grain_; ++i) {
    Cell& cell = cells_[i];
    auto look = [&](const Stamp& other, bool wrote) {
      if (found.kind == Conflict::Kind::kNone && !ordered(other, now)) {
        found = {kind(other, now), i * grain_, other, wrote};
      }
    };
    look(cell.written, true);
    look(cell.read, false);
    look(cell.read_beside, false);
    look(cell.read_elsewhere, false);
    cell.written = now;
  }
  return found;
}

}  // namespace simt

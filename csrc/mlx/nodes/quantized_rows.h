// A quantized matrix among the inputs of a node, for the CPU backend.
#pragma once

#include <memory>
#include <vector>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/facts/repack.h"

namespace nibble::bridge {

// The arrays of a quantized matrix, or stand-ins for them (facts/repack.h):
// inputs first, first + 1 and first + 2.
class QuantizedRows {
 public:
  QuantizedRows(const std::vector<mx::array>& inputs, int first)
      : w_(inputs[first]),
        scales_(inputs[first + 1]),
        biases_(inputs[first + 2]),
        packed_(repack::find(inputs[first])) {
    for (int i = 0; packed_ && i < 3; ++i) {
      sizes_[i] = inputs[first + i].nbytes();
    }
  }

  cpu::QuantizedOperands operands() {
    if (!packed_) {
      return {w_.as<uint32_t>(), scales_.data(), biases_.data()};
    }
    if (packed_->is_readable()) {
      return {nullptr, nullptr, nullptr, packed_.get()};
    }
    using enum cpu::PackedPart;
    return {static_cast<const uint32_t*>(unpacked(kCodes)),
            unpacked(kScales),
            packed_->form().format.has_biases() ? unpacked(kBiases)
                                                : biases_.data()};
  }

 private:
  // For another instruction set than that of the layout.
  const void* unpacked(cpu::PackedPart part) {
    auto i = static_cast<size_t>(part);
    if (unpacked_[i].empty()) {
      unpacked_[i].resize(sizes_[i]);
      packed_->unpack(part, unpacked_[i].data());
    }
    return unpacked_[i].data();
  }

  RowContiguous w_, scales_, biases_;
  std::shared_ptr<const cpu::Packed> packed_;
  size_t sizes_[3] = {};
  std::vector<uint8_t> unpacked_[3];
};

}  // namespace nibble::bridge

// A quantized matrix among the inputs of a node, for the CPU backend.
#pragma once

#include <memory>
#include <vector>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/facts/repack.h"

namespace nibble::bridge {

// The arrays of a quantized matrix: inputs first, first + 1 and first + 2.
class QuantizedRows {
 public:
  QuantizedRows(const std::vector<mx::array>& inputs, int first)
      : w_(inputs[first]),
        scales_(inputs[first + 1]),
        biases_(inputs[first + 2]),
        copy_(
            repack::find(inputs[first], inputs[first + 1], inputs[first + 2])),
        w_size_(inputs[first].size()) {}

  cpu::QuantizedOperands operands() {
    return {w_.as<uint32_t>(), scales_.data(), biases_.data()};
  }

  // For the products of a problem: with the copy of repack.h, if there is one.
  template <typename Problem>
  cpu::QuantizedOperands operands(const Problem& p) {
    cpu::QuantizedOperands o = operands();
    if (copy_ && p.transpose) {
      size_t words = size_t(p.N) * p.format.words_per_row(p.K);
      o.packed = copy_->get({p.N, p.K, p.format, p.scale_dtype},
                            static_cast<int>(w_size_ / words),
                            o);
    }
    return o;
  }

 private:
  RowContiguous w_, scales_, biases_;
  std::shared_ptr<repack::Copy> copy_;
  size_t w_size_;
};

}  // namespace nibble::bridge

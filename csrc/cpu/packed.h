// Quantized matrices in the packed layout of the instruction set in use.
// Products of few rows, and all with 8-bit activations, are then faster and
// have the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "csrc/core/dtype.h"
#include "csrc/core/format.h"
#include "csrc/cpu/operands.h"

namespace nibble::cpu {

// A matrix [N, K] and its types.
struct PackedForm {
  int N, K;
  QuantFormat format;
  Dtype scale_dtype;

  bool operator==(const PackedForm&) const = default;
};

class Packed {
 public:
  // Returns the size of a copy; 0 for widths without a packed layout: 3, 5, 6.
  static size_t bytes(const PackedForm& form);

  // Copies `count` matrices, on all threads. bytes(form) must not be 0.
  Packed(const PackedForm& form, int count, const QuantizedOperands& operands);

  // Returns matrix `index`, for Weights::packed; nullptr if it is not of this
  // form, or another instruction set is in use.
  const uint8_t* matrix(const PackedForm& form, int index) const;

 private:
  struct Free {
    void operator()(uint8_t* p) const;
  };

  PackedForm form_;
  int count_;
  int strip_rows_;
  size_t matrix_bytes_;
  std::unique_ptr<uint8_t[], Free> data_;
};

}  // namespace nibble::cpu

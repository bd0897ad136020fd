// Quantized matrices laid out anew for the instruction set in use: products of
// few rows, and all with activations of 8 bits, are then faster and have the
// same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/matmul.h"

namespace nibble::cpu {

// A matrix [N, K] and what its codes mean.
struct PackedForm {
  int N, K;
  QuantFormat format;
  Dtype scale_dtype;

  bool operator==(const PackedForm&) const = default;
};

class Packed {
 public:
  // What a matrix takes in memory; 0 for bits that are only read where they
  // lie: 3, 5 and 6.
  static size_t bytes(const PackedForm& form);

  // Copies `count` matrices, on all threads. bytes(form) must not be 0.
  Packed(const PackedForm& form, int count, const QuantizedOperands& operands);

  // Matrix `index`, as Weights::packed; nullptr if it is not of this form, or
  // another instruction set is in use.
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

// Quantized matrices in the packed layout of the instruction set in use.
// Products of few rows, and all with 8-bit activations, are then faster and
// have the same bits. It is a permutation of the same bits, which unpack()
// undoes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/core/dtype.h"
#include "csrc/core/format.h"
#include "csrc/cpu/kernels.h"
#include "csrc/cpu/operands.h"

namespace nibble::cpu {

// Matrices [N, K] and their types.
struct PackedForm {
  int N, K;
  QuantFormat format;
  Dtype scale_dtype;

  bool operator==(const PackedForm&) const = default;
};

// The arrays of a matrix in MLX's layout.
enum class PackedPart : uint8_t { kCodes, kScales, kBiases };

class Packed {
 public:
  // The alignment of their memory: a vector of the widest instruction set.
  static constexpr size_t kAlignment = 64;

  // Returns the size of a matrix; 0 for a format without a packed layout, as
  // E4M3 where no product reads it.
  static size_t bytes(const PackedForm& form);

  // Packs `count` matrices into `memory`, on all threads. bytes(form) must not
  // be 0. The memory must outlive this.
  Packed(const PackedForm& form,
         int count,
         const QuantizedOperands& operands,
         uint8_t* memory);

  const PackedForm& form() const { return form_; }
  size_t bytes() const { return count_ * matrix_bytes_; }

  // False if another instruction set than that of the layout is in use.
  bool is_readable() const;

  // Returns matrix `index`, for Weights::packed.
  const uint8_t* matrix(int index) const {
    return memory_ + index * matrix_bytes_;
  }

  // Returns the size of a row of an array in MLX's layout.
  size_t row_bytes(PackedPart part) const;

  // out = an array of all matrices in MLX's layout, on all threads.
  void unpack(PackedPart part, uint8_t* out) const;

  // out [count, row] = rows of that array. Rows beyond the last are the last.
  void unpack_rows(PackedPart part,
                   const int32_t* rows,
                   size_t count,
                   uint8_t* out) const;

 private:
  // Matrix `index` as weights that only unpack() of their kernels may read.
  Weights weights(int index) const;

  PackedForm form_;
  int count_;
  const Kernels* kernels_;
  size_t matrix_bytes_;
  const uint8_t* memory_;
};

}  // namespace nibble::cpu

// Which matrices are to be laid out anew for this processor (cpu/packed.h), and
// their copies.
//
// A copy is made by the first product, belongs to these three arrays and is
// found by their identity: whatever replaces or overwrites one of them is
// another array, which has none.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "csrc/cpu/packed.h"
#include "mlx/array.h"

namespace nibble::repack {

namespace mx = mlx::core;

// A copy that may not have been made yet.
class Copy {
 public:
  // What it takes, or will take, in memory.
  explicit Copy(size_t bytes) : bytes_(bytes) {}

  // Makes it if need be; nullptr where there is not the memory for it.
  const cpu::Packed* get(const cpu::PackedForm& form,
                         int count,
                         const cpu::QuantizedOperands& operands);

  size_t bytes() const { return bytes_; }
  bool made();

 private:
  size_t bytes_;
  std::mutex mutex_;
  bool tried_ = false;
  std::optional<cpu::Packed> packed_;
};

// Has products with this matrix make a copy of it, and keeps the arrays in
// memory until forget() is called with what is returned; 0, and nothing is
// done, of a format that is read as it lies.
uint64_t remember(const mx::array& w,
                  const mx::array& scales,
                  const mx::array& biases,
                  int bits,
                  int group_size);
void forget(uint64_t token);

// Of what remember() returned: bytes of the copy, and of it those that are
// there by now. Both 0 if it is forgotten.
std::pair<size_t, size_t> bytes(uint64_t token);

// The copy for these arrays; nullptr if there is to be none.
std::shared_ptr<Copy> find(const mx::array& w,
                           const mx::array& scales,
                           const mx::array& biases);

}  // namespace nibble::repack

// The matrices that the CPU backend copies into its own layout (cpu/packed.h),
// and the copies.
//
// The first product makes the copy. It belongs to these three arrays and is
// found by their identity. An array that replaces or overwrites one of them is
// another array, without a copy.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "csrc/cpu/packed.h"
#include "mlx/array.h"

namespace nibble::repack {

namespace mx = mlx::core;

// A copy, perhaps not made yet.
class Copy {
 public:
  // `bytes` is the memory that the copy needs.
  explicit Copy(size_t bytes) : bytes_(bytes) {}

  // The copy, made at the first call; nullptr if memory did not suffice.
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

// Has products with this matrix make a copy. Returns a token, and keeps the
// arrays in memory until forget() gets it. Returns 0, and does nothing, if the
// backend has no other layout for the format.
uint64_t remember(const mx::array& w,
                  const mx::array& scales,
                  const mx::array& biases,
                  int bits,
                  int group_size);
void forget(uint64_t token);

// {bytes that the copy of this token needs, bytes allocated so far}; {0, 0}
// after forget().
std::pair<size_t, size_t> bytes(uint64_t token);

// The copy for these arrays; nullptr if there is none to make.
std::shared_ptr<Copy> find(const mx::array& w,
                           const mx::array& scales,
                           const mx::array& biases);

}  // namespace nibble::repack

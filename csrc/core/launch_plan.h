// A launch as plain data. It does not depend on the executor that runs it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/core/operand.h"

namespace nibble {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;

  bool operator==(const Dim3&) const = default;
  constexpr uint64_t volume() const { return uint64_t{x} * y * z; }
};

// A matrix that a kernel for CUDA copies in boxes (a CUtensorMap), which have
// zeros where it ends.
struct Boxes {
  Operand operand;
  int rows, columns;          // of the matrix
  int box_rows, box_columns;  // of a box
  int item;                   // bytes of an element
  // True if 16 bytes lie where the tensor cores read rows of 128.
  bool swizzled;

  bool operator==(const Boxes&) const = default;
};

struct LaunchPlan {
  std::string kernel;              // host name, for parse_kernel_name()
  Dim3 threadgroups;               // grid, in threadgroups
  Dim3 threads;                    // of one threadgroup
  std::vector<Operand> buffers;    // buffers[i] binds [[buffer(i)]]
  std::vector<std::byte> params;   // a struct of kernels/shared.h, bound next
  std::vector<Boxes> boxes;        // bound after `params`
  uint32_t threadgroup_bytes = 0;  // declared by the kernel
  uint64_t sums_bytes = 0;  // of kSums, if it writes them; else it reads them

  bool operator==(const LaunchPlan&) const = default;

  constexpr bool writes(Operand operand) const {
    return operand == Operand::kOut || operand == Operand::kOut1 ||
           operand == Operand::kOut2 ||
           (operand == Operand::kSums && sums_bytes > 0);
  }
};

// Returns one launch as a line for people and golden files.
std::string to_string(const LaunchPlan& plan);

}  // namespace nibble

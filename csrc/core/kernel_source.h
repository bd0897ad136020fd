// The kernels' text, which the extension carries. A Mac compiles it at the
// first use of a kernel; the tests run it on Linux.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "csrc/core/kernel_name.h"

namespace nibble {

struct EmbeddedFile {
  std::string_view name;  // "qmv.h"
  std::string_view text;  // the bytes of kernels/qmv.h
};

const std::vector<EmbeddedFile>& embedded_kernels();

// Returns a complete Metal source of the kernels of these names: the families'
// headers with their includes pasted in, and an instantiation of each. `fences`
// is NIBBLE_FENCES of kernels/mma.h.
std::string kernel_source(const std::vector<KernelId>& ids,
                          bool fences = false);

// Returns a complete text for NVRTC of one kernel for CUDA, whose entry has the
// kernel's name.
std::string cuda_source(const KernelId& id);

// The kernels that copy an operand that others cannot read in place; see
// plan_contiguous(). They have no family: no problem leads to them. Those for
// elements of one byte are in the same text.
inline constexpr std::string_view kContiguousKernel = "contiguous";
inline constexpr std::string_view kContiguousBytesKernel = "contiguous_bytes";
inline constexpr std::string_view kCudaContiguousKernel = "cuda_contiguous";
inline constexpr std::string_view kCudaContiguousBytesKernel =
    "cuda_contiguous_bytes";
constexpr bool is_contiguous_kernel(std::string_view name) {
  return name == kContiguousKernel || name == kContiguousBytesKernel ||
         name == kCudaContiguousKernel || name == kCudaContiguousBytesKernel;
}
std::string contiguous_source();
std::string cuda_contiguous_source();

}  // namespace nibble

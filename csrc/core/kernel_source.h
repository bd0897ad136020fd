// The kernels' text, carried inside the extension: what a Mac compiles at the
// first use of a kernel, and what the tests run on Linux.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "csrc/core/kernel_name.h"

namespace nibble {

struct EmbeddedFile {
  std::string_view name;  // "qmv.h"
  std::string_view text;  // of kernels/qmv.h, byte for byte
};

const std::vector<EmbeddedFile>& embedded_kernels();

// A complete Metal source that defines the one kernel kernel_name(id): the
// family's header with its includes pasted in, and an instantiation.
std::string kernel_source(const KernelId& id);

// The copy that an executor makes of an operand that begins at no multiple of
// NIBBLE_ALIGNMENT; see plan_align(). Of no family, for no problem leads to it.
inline constexpr std::string_view kAlignKernel = "align";
std::string align_source();

}  // namespace nibble

// The grammar of kernel names, and the list of all kernels.
//
//   family _ dtype _ scale-dtype _ b BITS _ g GROUP [_sym] {_ label NUMBER}
//   qmm_bf16_f16_b4_g64_bm32_bn32_bk32_wm2_wn2
//
// A name spells every template argument, so that a library cached by name is
// never the wrong one. docs/internals/kernels.md has the table.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/core/families.h"

namespace nibble {

struct KernelId : Types {
  Family family = Family::kQmv;
  std::vector<int> shape = {};  // one number for each label of the family

  bool operator==(const KernelId&) const = default;
};

std::string kernel_name(const KernelId& id);

// The inverse; nullopt if no kernel has this name.
std::optional<KernelId> parse_kernel_name(std::string_view name);

// The C++ function that the instance is made from:
// "dense<nibble::Qmv, half, nibble::Affine<half, 4, 64>>".
std::string template_call(const KernelId& id);

// The header under kernels/ that defines it: "qmv.h".
std::string kernel_header(const KernelId& id);

// Every instance that a plan for `api` can name, once.
std::vector<KernelId> instances(Api api = Api::kMetal);

// The instances of one family for these types.
std::vector<KernelId> instances(Family family, const Types& types);

}  // namespace nibble

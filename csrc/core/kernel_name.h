// The grammar of kernel names, and the list of all kernels there are.
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

#include "csrc/core/dtype.h"
#include "csrc/core/format.h"

namespace nibble {

enum class Family : uint8_t {
  kQmv,
  kQmvQuad,
  kQmvMulti,
  kQmmSkinny,
  kQmm,
  kQmmHalf,
  kQmmSplitk,
  kQmmSplitkSum,
  kQvm,
  kQmmN,
  kJointQmv,
  kJointQmvMulti,
  kJointQmmSkinny,
  kGatherQmv,
  kGatherQmmSkinny,
  kGatherQmm,
  kGatherQvm,
  kGatherQmmN,
  kGatherSortedQmmN,
  kSwiglu,
  kGatherSwiglu,
  kDequantize,
};

struct KernelId {
  Family family = Family::kQmv;
  Dtype dtype = Dtype::kFloat16;
  Dtype scale_dtype = Dtype::kFloat16;
  QuantFormat format;
  std::vector<int> shape;  // what follows; the family says how many numbers

  bool operator==(const KernelId&) const = default;
};

std::string kernel_name(const KernelId& id);

// The inverse; nullopt if `name` is not one of ours.
std::optional<KernelId> parse_kernel_name(std::string_view name);

// The C++ function that the instance is made of:
// "dense<nibble::Qmv, half, nibble::Affine<half, 4, 64>>".
std::string template_call(const KernelId& id);

// The header under kernels/ that defines it: "qmv.h".
std::string kernel_header(const KernelId& id);

// Every instance that a plan can name, once.
std::vector<KernelId> instances();

// Those of one family, for these types and this format.
std::vector<KernelId> instances(Family family,
                                Dtype dtype,
                                Dtype scale_dtype,
                                const QuantFormat& format);

}  // namespace nibble

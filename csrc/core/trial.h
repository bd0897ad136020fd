// A small problem for each kernel. A machine that has never run the kernel
// tries it on this problem.
#pragma once

#include <optional>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/kernel_name.h"
#include "csrc/core/launch_plan.h"

namespace nibble {

// With W = dequantize(w), w [experts, N, K], and indices lhs, rhs [B], all zero
// for a family that has none:
//   kProduct:        y[b] = x[lhs[b]] @ W[rhs[b]]^T,
//                    x [rows, M, K], y [B, M, N],
//                    with bias [N] and residual [B, M, N] added if `epilogue`
//   kNotTransposed:  y[b] = x[lhs[b]] @ W[rhs[b]],
//                    x [rows, M, N], y [B, M, K]
//   kSwiglu:         y[b] = silu(x[lhs[b]] @ W[rhs[b]]^T)
//                           * (x[lhs[b]] @ U[rhs[b]]^T)
//   kJoint:          y[b] = x[0] @ W[b]^T + bias[b], bias [B, N], each b with
//                    operands of its own; B = experts
//   kDequantize:     y = W; there is no x
//   kGradient:       y [2, experts, N, K / group_size] in float32: with the
//                    codes C of W and d[e] the sum of dy[b]^T @ x[lhs[b]] over
//                    the b with rhs[b] = e, sums of C * d and of d over each
//                    group
struct Trial : Product {
  enum class Kind : uint8_t {
    kProduct,
    kNotTransposed,
    kSwiglu,
    kJoint,
    kDequantize,
    kGradient
  };

  Kind kind = Kind::kProduct;
  int B = 1;
  int rows = 1;
  int experts = 1;
  bool sorted = false;  // rhs never falls
  bool epilogue = false;
  std::vector<LaunchPlan> launches;
};

// A trial with ragged edges whose launches name `kernel`; nullopt if no plan
// for this device does.
std::optional<Trial> trial(const KernelId& kernel, const DeviceProfile& device);

}  // namespace nibble

// A kernel is trusted on a machine only after a trial there.
//
// The Python package (machine/verdicts.py) runs the trials and remembers the
// outcomes. This file gives it the trials, and operations ask here before they
// build a graph of our kernels.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "csrc/core/launch_plan.h"
#include "csrc/core/trial.h"
#include "csrc/mlx/plans.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble::self_check {

namespace mx = mlx::core;

// True if a kernel may be used. Called once for each kernel.
using Judge = std::function<bool(const std::string& kernel)>;

// Sets the judge and forgets earlier answers. An empty judge trusts all
// kernels.
void set_judge(Judge judge);

// The kernel that copies operands that are views. No problem leads to it.
std::string view_kernel();

// True if all of these kernels may be used.
bool trusted(const plans::Plan& launches);
bool trusted(const std::vector<std::string>& kernels);

// The same without a trial: false if one of them has not been asked for.
bool is_known_right(const std::vector<LaunchPlan>& launches);

// The names of all kernels.
std::vector<std::string> kernels();

// The trial of a kernel on this machine's GPU; nullopt if the planner never
// uses the kernel there. Throws if there is no GPU, or no such kernel.
std::optional<Trial> trial_of(const std::string& kernel);

// Arrays by the names of operands: "w", "scales", ... "x", "lhs_indices".
using Operands = std::map<std::string, mx::array>;

// The result of the kernel's trial, as a node. The operands have the trial's
// shapes and are evaluated and contiguous.
mx::array run(const std::string& kernel,
              const Operands& operands,
              mx::Stream stream);

}  // namespace nibble::self_check

// Kernels are not trusted on a machine until they have been tried there.
//
// Who tries them and remembers the outcome is set from outside (the Python
// package's selfcheck.py); here is what it needs for that, and the question
// that an operation asks before it builds a graph of our kernels.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "csrc/core/launch_plan.h"
#include "csrc/core/trial.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble::self_check {

namespace mx = mlx::core;

// Whether a kernel may be used. Asked once for each kernel.
using Judge = std::function<bool(const std::string& kernel)>;

// An empty judge lets every kernel be used. Forgets earlier answers.
void set_judge(Judge judge);

// Whether all kernels of a plan may be used.
bool trusted(const std::vector<LaunchPlan>& launches);
bool trusted(const std::vector<std::string>& kernels);

// The names of all kernels.
std::vector<std::string> kernels();

// The trial of a kernel on the GPU of this machine; nullopt if it is never
// planned for it. Throws if there is no GPU, or no such kernel.
std::optional<Trial> trial_of(const std::string& kernel);

// Arrays by the names of operands: "w", "scales", ... "x", "lhs_indices".
using Operands = std::map<std::string, mx::array>;

// The node y that runs the trial of a kernel, whatever the planner would
// choose. Operands as the trial has them, evaluated and contiguous.
mx::array run(const std::string& kernel,
              const Operands& operands,
              mx::Stream stream);

}  // namespace nibble::self_check

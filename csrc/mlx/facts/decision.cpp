#include "csrc/mlx/facts/decision.h"

#include <string_view>

#include "csrc/core/planner.h"
#include "csrc/mlx/executor.h"
#include "csrc/mlx/facts/self_check.h"
#include "csrc/mlx/facts/tuning.h"

namespace nibble::decision {
namespace {

bool is_complete(const ops::MatmulOptions& options) {
  const Tuning* table = tuning::table(options);
  return table != nullptr && table->complete();
}

template <typename Problem>
bool is_right(const Problem& problem,
              bool traced,
              const DeviceProfile& device) {
  auto launches = plans::plan(problem, device);
  return launches && self_check::trusted(launches) &&
         (!traced ||
          self_check::trusted(kernels_of_any_shape(problem, device.api)));
}

template <typename Problem>
bool ours_on_gpu(const Problem& problem,
                 std::string_view choice,
                 bool traced,
                 const mx::Device& device) {
  if (choice == kLeaveToMlx || !executor::is_available() ||
      !supported_by_gpu(problem.format)) {
    return false;
  }
  DeviceProfile profile = executor::device_profile(device);
  // A measurement overrules the expectation.
  bool expected_slower =
      choice.empty() && (traced ? mlx_may_be_faster(problem, profile)
                                : mlx_is_faster(problem, profile));
  return !expected_slower && is_right(problem, traced, profile);
}

template <typename Problem>
bool dense_on_gpu(const Problem& problem,
                  const mx::Device& device,
                  bool plain) {
  return device == mx::Device::gpu && executor::api() == Api::kCuda &&
         dense_is_better(problem, executor::device_profile(device), plain);
}

template <typename Problem>
bool has_gradient(const Problem& product, const mx::Device& device) {
  if (device == mx::Device::cpu) {
    return true;
  }
  if (!executor::is_available()) {
    return false;
  }
  DeviceProfile profile = executor::device_profile(device);
  auto launches = plans::plan_gradient(product, profile);
  return launches && !dense_gradient_is_faster(product, profile) &&
         self_check::trusted(launches);
}

}  // namespace

bool ours(const MatmulProblem& problem,
          const ops::MatmulOptions& options,
          bool traced,
          const mx::Device& device) {
  if (device == mx::Device::cpu) {
    return problem.choice != kLeaveToMlx;
  }
  bool any_rows = !traced || options.batch_invariant || !is_complete(options) ||
                  tuning::table(options)->ours_for_any_rows(problem);
  // Nobody times dense products: no choice overrules them.
  return any_rows && !dense(problem, device) &&
         ours_on_gpu(problem, problem.choice, traced, device);
}

bool ours(const GatherProblem& problem,
          const ops::MatmulOptions& options,
          bool traced,
          const mx::Device& device) {
  if (device == mx::Device::cpu) {
    return true;
  }
  // Nobody times products of several rows that choose one matrix together.
  bool any_rows = !traced || options.batch_invariant || !is_complete(options);
  return any_rows && !dense(problem, device) &&
         ours_on_gpu(problem, tuning::choice(problem, options), traced, device);
}

bool ours(const DequantizeProblem& problem,
          const ops::MatmulOptions& options,
          const mx::Device& device) {
  // Nobody times it.
  return device == mx::Device::cpu ||
         (!is_complete(options) && ours_on_gpu(problem, {}, false, device));
}

bool gradient_is_ours(const MatmulProblem& product, const mx::Device& device) {
  return has_gradient(product, device);
}

bool gradient_is_ours(const GatherProblem& product, const mx::Device& device) {
  return has_gradient(product, device);
}

bool dense(const MatmulProblem& problem, const mx::Device& device, bool plain) {
  return dense_on_gpu(problem, device, plain);
}

bool dense(const GatherProblem& problem, const mx::Device& device, bool plain) {
  return dense_on_gpu(problem, device, plain);
}

bool mlx_misreads_views(const mx::Device& device) {
  return device == mx::Device::gpu && executor::api() == Api::kCuda;
}

int columns_for_mlx(const MatmulProblem& problem, const mx::Device& device) {
  return device == mx::Device::gpu && executor::is_available()
             ? nibble::columns_for_mlx(problem,
                                       executor::device_profile(device))
             : problem.K;
}

bool joins(const plans::Plan& launches, const ops::MatmulOptions& options) {
  return launches && (is_complete(options) && !options.batch_invariant
                          ? self_check::is_known_right(*launches)
                          : self_check::trusted(launches));
}

}  // namespace nibble::decision

#include "csrc/mlx/facts/tuning.h"

#include <deque>
#include <mutex>

#include "csrc/core/error.h"
#include "csrc/core/planner.h"
#include "csrc/cpu/profile.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/executor.h"
#include "mlx/utils.h"

namespace nibble::tuning {
namespace {

struct Tables {
  std::mutex mutex;
  std::deque<Tuning> all;  // growing a deque does not move its elements
};

Tables& tables() {
  static Tables the_tables;
  return the_tables;
}

const Tuning& table(int number) {
  Tables& t = tables();
  std::lock_guard lock(t.mutex);
  require(number >= 1 && static_cast<size_t>(number) <= t.all.size(),
          "quantized_matmul",
          "tuning must be the number of a table but is ",
          number);
  return t.all[number - 1];
}

}  // namespace

MatmulProblem problem(const Shape& shape) {
  const auto& [rows, N, K, dtype, scale_dtype, bits, group_size, symmetric] =
      shape;
  auto own = bridge::to_dtype(dtype);
  auto of_scales = bridge::to_dtype(scale_dtype);
  require(own && of_scales,
          "tuning",
          "dtypes float32, float16 or bfloat16 are required but got ",
          own ? scale_dtype : dtype);
  require(rows >= 1 && N >= 1 && K >= 1 && group_size >= 1,
          "tuning",
          "rows, N, K and group_size must be positive but got ",
          rows,
          ", ",
          N,
          ", ",
          K,
          " and ",
          group_size);
  MatmulProblem p;
  p.M = rows;
  p.N = N;
  p.K = K;
  p.dtype = *own;
  p.scale_dtype = *of_scales;
  p.format = {bits, group_size, affine_mode(symmetric)};
  return p;
}

int add(Tuning tuning) {
  Tables& t = tables();
  std::lock_guard lock(t.mutex);
  t.all.push_back(std::move(tuning));
  return static_cast<int>(t.all.size());
}

void consult(MatmulProblem& problem,
             const ops::MatmulOptions& options,
             const mx::Device& device) {
  if (options.tuning == 0) {
    return;
  }
  bool int8 = options.int8_activations && device == mx::Device::cpu;
  problem.choice = table(options.tuning).find(problem, int8);
  problem.batch_invariant = options.batch_invariant;
  if (problem.batch_invariant && problem.choice == kLeaveToMlx) {
    problem.choice = {};
  }
}

std::vector<std::string> candidates(const MatmulProblem& problem,
                                    bool int8,
                                    const mx::Device& device) {
  std::vector<std::string> names;
  if (!supported(problem.format) ||
      problem.K % problem.format.group_size != 0) {
    return names;
  }
  if (device == mx::Device::cpu) {
    for (const CpuPlan& plan :
         nibble::candidates(problem, cpu::profile(), int8)) {
      names.push_back(cpu_plan_name(plan, problem));
    }
  } else if (executor::is_available()) {
    for (const auto& launches :
         nibble::candidates(problem, executor::device_profile(device))) {
      names.push_back(launches.front().kernel);
    }
  }
  return names;
}

std::string chosen(const MatmulProblem& problem,
                   bool int8,
                   const mx::Device& device) {
  std::vector<std::string> names = candidates(problem, int8, device);
  for (const std::string& name : names) {
    if (name == problem.choice) {
      return name;
    }
  }
  bool ours = !names.empty() && problem.choice != kLeaveToMlx &&
              (device == mx::Device::cpu ||
               !mlx_is_faster(problem, executor::device_profile(device)));
  return ours ? names.front() : std::string(kLeaveToMlx);
}

}  // namespace nibble::tuning

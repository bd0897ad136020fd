#include "csrc/mlx/facts/tuning.h"

#include <deque>
#include <mutex>
#include <optional>
#include <utility>

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
  std::vector<const Tuning*> current;  // by number
};

Tables& tables() {
  static Tables the_tables;
  return the_tables;
}

void check(int number, const Tables& t) {
  require(number >= 1 && static_cast<size_t>(number) <= t.current.size(),
          "quantized_matmul",
          "tuning must be the number of a table but is ",
          number);
}

Tuning made_of(const std::vector<Choice>& choices, bool gpu, bool complete) {
  Tuning table(gpu, complete);
  for (const auto& [shape, int8, candidate] : choices) {
    if (std::get<8>(shape) > 0) {
      table.put(gather_problem(shape), candidate);
    } else {
      table.put(problem(shape), int8, candidate);
    }
  }
  return table;
}

// A choice that the options allow.
std::string_view allowed(std::string_view choice,
                         const Tuning& table,
                         bool batch_invariant) {
  if (choice.empty() && table.complete()) {
    choice = kLeaveToMlx;
  }
  return batch_invariant && choice == kLeaveToMlx ? std::string_view() : choice;
}

Product product(const Shape& shape) {
  const auto& [rows,
               N,
               K,
               dtype,
               scale_dtype,
               bits,
               group_size,
               mode_name,
               experts,
               sorted] = shape;
  auto own = bridge::to_dtype(dtype);
  const ModeInfo* mode = mode_named(mode_name);
  require(mode, "tuning", "a known mode is required but got '", mode_name, "'");
  auto of_scales = bridge::scale_dtype(scale_dtype, *mode);
  require(own && of_scales,
          "tuning",
          "the types of mode '",
          mode_name,
          "' are required but got ",
          own ? scale_dtype : dtype);
  require(rows >= 1 && N >= 1 && K >= 1 && group_size >= 1 && experts >= 0,
          "tuning",
          "rows, N, K and group_size must be positive but got ",
          rows,
          ", ",
          N,
          ", ",
          K,
          " and ",
          group_size);
  Product p;
  p.M = rows;
  p.N = N;
  p.K = K;
  p.dtype = *own;
  p.scale_dtype = *of_scales;
  p.format = {bits, group_size, mode->mode};
  return p;
}

std::vector<std::string> names_of(
    const std::optional<std::vector<LaunchPlan>>& launches) {
  std::vector<std::string> names;
  for (const LaunchPlan& launch :
       launches.value_or(std::vector<LaunchPlan>{})) {
    names.push_back(launch.kernel);
  }
  return names;
}

}  // namespace

MatmulProblem problem(const Shape& shape) {
  MatmulProblem p;
  static_cast<Product&>(p) = product(shape);
  return p;
}

GatherProblem gather_problem(const Shape& shape) {
  GatherProblem p;
  static_cast<Product&>(p) = product(shape);
  p.B = p.rows = p.M;
  p.M = 1;
  p.experts = std::get<8>(shape);
  p.sorted = std::get<9>(shape);
  return p;
}

int add(const std::vector<Choice>& choices,
        bool complete,
        const mx::Device& device) {
  Tuning made = made_of(choices, device == mx::Device::gpu, complete);
  Tables& t = tables();
  std::lock_guard lock(t.mutex);
  t.current.push_back(&t.all.emplace_back(std::move(made)));
  return static_cast<int>(t.current.size());
}

void replace(int number, const std::vector<Choice>& choices) {
  Tables& t = tables();
  std::lock_guard lock(t.mutex);
  check(number, t);
  const Tuning*& table = t.current[number - 1];
  table =
      &t.all.emplace_back(made_of(choices, table->gpu(), table->complete()));
}

const Tuning* table(const ops::MatmulOptions& options) {
  if (options.tuning == 0) {
    return nullptr;
  }
  Tables& t = tables();
  std::lock_guard lock(t.mutex);
  check(options.tuning, t);
  return t.current[options.tuning - 1];
}

void consult(MatmulProblem& problem,
             const ops::MatmulOptions& options,
             const mx::Device& device) {
  problem.batch_invariant = options.batch_invariant;
  const Tuning* found = table(options);
  bool gpu = device == mx::Device::gpu;
  if (found == nullptr || found->gpu() != gpu) {
    return;
  }
  bool int8 = options.activations == Activations::kInt8 && !gpu;
  problem.choice =
      allowed(found->find(problem, int8), *found, options.batch_invariant);
}

std::string_view choice(const GatherProblem& problem,
                        const ops::MatmulOptions& options) {
  const Tuning* found = table(options);
  return found == nullptr || !found->gpu()
             ? std::string_view()
             : allowed(found->find(problem), *found, options.batch_invariant);
}

std::vector<std::string> kernels(const Shape& shape,
                                 const std::string& choice) {
  DeviceProfile device = executor::device_profile(mx::Device::gpu);
  if (std::get<8>(shape) > 0) {
    GatherProblem p = gather_problem(shape);
    return dense_is_better(p, device) ? std::vector<std::string>{}
                                      : names_of(plan(p, device));
  }
  MatmulProblem p = problem(shape);
  p.choice = choice;
  return dense_is_better(p, device) ? std::vector<std::string>{}
                                    : names_of(plan(p, device));
}

std::vector<std::string> joining_kernels(const Shape& shape) {
  DeviceProfile device = executor::device_profile(mx::Device::gpu);
  if (std::get<8>(shape) > 0) {
    return names_of(plan_swiglu(gather_problem(shape), device));
  }
  MatmulProblem p = problem(shape);
  std::vector<std::string> names = names_of(plan_swiglu(p, device));
  auto joint = names_of(plan_joint({p, p}, device));
  names.insert(names.end(), joint.begin(), joint.end());
  return names;
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
    for (const CpuPlan& plan : nibble::candidates(
             problem, cpu::profile(), activations_of(int8 ? 8 : 0))) {
      names.push_back(cpu_plan_name(plan, problem));
    }
  } else if (executor::is_available() &&
             !dense_is_better(problem, executor::device_profile(device))) {
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

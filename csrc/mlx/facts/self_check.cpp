#include "csrc/mlx/facts/self_check.h"

#include <memory>
#include <mutex>
#include <unordered_map>

#include "csrc/core/error.h"
#include "csrc/core/kernel_name.h"
#include "csrc/cpu/isa.h"
#include "csrc/metal/encoder.h"
#include "csrc/mlx/bridge.h"
#include "mlx/primitives.h"

namespace nibble::self_check {
namespace {

struct Answers {
  std::mutex mutex;
  Judge judge;
  std::unordered_map<std::string, bool> known;
};

Answers& answers() {
  static Answers the_answers;
  return the_answers;
}

bool trusted(const std::string& kernel) {
  Answers& a = answers();
  Judge judge;
  {
    std::lock_guard lock(a.mutex);
    auto found = a.known.find(kernel);
    if (found != a.known.end()) {
      return found->second;
    }
    judge = a.judge;
  }
  // A judge runs kernels and Python code: not under the lock. Two threads may
  // both ask; they get the same answer.
  bool answer = !judge || judge(kernel);
  std::lock_guard lock(a.mutex);
  a.known[kernel] = answer;
  return answer;
}

// Given launches as a node; `names` says which operand each input is.
class Launches : public mx::UnaryPrimitive {
 public:
  Launches(mx::Stream stream,
           std::vector<LaunchPlan> launches,
           std::vector<std::string> names)
      : UnaryPrimitive(stream),
        launches_(std::move(launches)),
        names_(std::move(names)) {}

  void eval_cpu(const std::vector<mx::array>&, mx::array&) override {
    fail("self_check", "a GPU was required but the stream is the CPU's");
  }

  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    auto find = [&](Operand operand) -> const mx::array* {
      for (size_t i = 0; i < names_.size(); ++i) {
        if (names_[i] == to_string(operand)) {
          return &inputs[i];
        }
      }
      return nullptr;
    };
    metal::Operands operands;
    operands.w = find(Operand::kWeight);
    operands.scales = find(Operand::kScales);
    operands.biases = find(Operand::kBiases);
    operands.up_w = find(Operand::kUpWeight);
    operands.up_scales = find(Operand::kUpScales);
    operands.up_biases = find(Operand::kUpBiases);
    operands.x = find(Operand::kX);
    operands.lhs_indices = find(Operand::kLhsIndices);
    operands.rhs_indices = find(Operand::kRhsIndices);
    operands.bias = find(Operand::kBias);
    operands.residual = find(Operand::kResidual);
    operands.out = &out;
    // Each of joint products writes its part of `out`.
    std::vector<mx::array> parts;
    if (find(Operand::kWeight1) != nullptr) {
      int count = out.shape(0);
      mx::Shape shape(out.shape().begin() + 1, out.shape().end());
      for (int i = 0; i < count; ++i) {
        parts.push_back(
            bridge::view(out,
                         static_cast<size_t>(i) * out.nbytes() / count,
                         shape,
                         out.dtype()));
      }
      operands.out = &parts[0];
      operands.joined[0] = {find(Operand::kWeight1),
                            find(Operand::kScales1),
                            find(Operand::kBiases1),
                            find(Operand::kBias1),
                            &parts[1]};
      operands.joined[1] = {find(Operand::kWeight2),
                            find(Operand::kScales2),
                            find(Operand::kBiases2),
                            find(Operand::kBias2),
                            &parts[2]};
    }
    metal::encode(launches_, operands, stream());
  }

  const char* name() const override { return "NibbleLaunches"; }

 private:
  std::vector<LaunchPlan> launches_;
  std::vector<std::string> names_;
};

mx::Shape shape_of_y(const Trial& t) {
  switch (t.kind) {
    case Trial::Kind::kProduct:
    case Trial::Kind::kSwiglu:
    case Trial::Kind::kJoint:
      return {t.B, t.M, t.N};
    case Trial::Kind::kNotTransposed:
      return {t.B, t.M, t.K};
    case Trial::Kind::kDequantize:
      return {t.N, t.K};
  }
  return {};
}

}  // namespace

void set_judge(Judge judge) {
  Answers& a = answers();
  std::lock_guard lock(a.mutex);
  a.judge = std::move(judge);
  a.known.clear();
}

bool trusted(const std::vector<LaunchPlan>& launches) {
  for (const LaunchPlan& launch : launches) {
    if (!trusted(launch.kernel)) {
      return false;
    }
  }
  return true;
}

bool trusted(const std::vector<std::string>& kernels) {
  for (const std::string& kernel : kernels) {
    if (!trusted(kernel)) {
      return false;
    }
  }
  return true;
}

std::vector<std::string> kernels() {
  std::vector<std::string> names;
  for (const KernelId& id : instances()) {
    names.push_back(kernel_name(id));
  }
  return names;
}

std::string cpu_isa() {
  return std::string(cpu::isa().name);
}

std::optional<Trial> trial_of(const std::string& kernel) {
  std::optional<KernelId> id = parse_kernel_name(kernel);
  require(id.has_value(),
          "self_check",
          "a known kernel was required but got ",
          kernel);
  return trial(*id, metal::device_profile(mx::Device::gpu));
}

mx::array run(const std::string& kernel,
              const Operands& operands,
              mx::Stream stream) {
  std::optional<Trial> trial = trial_of(kernel);
  require(trial.has_value(),
          "self_check",
          "a kernel for this GPU was required but got ",
          kernel);
  std::vector<mx::array> inputs;
  std::vector<std::string> names;
  for (const auto& [name, array] : operands) {
    names.push_back(name);
    inputs.push_back(array);
  }
  for (const LaunchPlan& launch : trial->launches) {
    for (Operand operand : launch.buffers) {
      require(launch.writes(operand) || operand == Operand::kSums ||
                  operands.contains(to_string(operand)),
              "self_check",
              kernel,
              " needs the operand ",
              to_string(operand));
    }
  }
  return mx::array(
      shape_of_y(*trial),
      bridge::to_mlx(trial->dtype),
      std::make_shared<Launches>(stream, trial->launches, std::move(names)),
      std::move(inputs));
}

}  // namespace nibble::self_check

#include "csrc/mlx/plans.h"

#include <functional>
#include <initializer_list>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include "csrc/core/planner.h"

namespace nibble::plans {
namespace {

size_t mixed(std::initializer_list<size_t> numbers) {
  size_t hash = 0;
  for (size_t number : numbers) {
    hash = (hash ^ number) * 0x9E3779B97F4A7C15;
    hash ^= hash >> 32;
  }
  return hash;
}

size_t hash_of(const Product& p) {
  return mixed({size_t(p.M), size_t(p.N), size_t(p.K), size_t(p.format.bits)});
}

size_t hash_of(const MatmulProblem& p) {
  return mixed({hash_of(static_cast<const Product&>(p)),
                size_t(p.epilogue.bias),
                size_t(p.batch.size),
                std::hash<std::string_view>()(p.choice)});
}

size_t hash_of(const GatherProblem& p) {
  return mixed({hash_of(static_cast<const Product&>(p)), size_t(p.B)});
}

size_t hash_of(const DequantizeProblem& p) {
  return mixed({size_t(p.rows), size_t(p.K), size_t(p.format.bits)});
}

size_t hash_of(const std::vector<MatmulProblem>& products) {
  size_t hash = products.size();
  for (const MatmulProblem& p : products) {
    hash = mixed({hash, hash_of(p)});
  }
  return hash;
}

// The answers to one function of the planner.
template <typename Problem>
class Answers {
 public:
  template <typename Function>
  Plan get(const Problem& problem,
           const DeviceProfile& device,
           const Function& function) {
    auto found = plans_.find({problem, device});
    if (found != plans_.end()) {
      return found->second;
    }
    auto launches = function();
    Plan plan;
    if (launches) {
      plan =
          std::make_shared<const std::vector<LaunchPlan>>(*std::move(launches));
    }
    if (plans_.size() >= kMostPlans) {
      plans_.clear();
      choices_.clear();
    }
    plans_.emplace(Question{owned(problem), device}, plan);
    return plan;
  }

  size_t size() const { return plans_.size(); }

 private:
  struct Question {
    Problem problem;
    DeviceProfile device;

    bool operator==(const Question&) const = default;
  };
  struct Hash {
    size_t operator()(const Question& q) const { return hash_of(q.problem); }
  };

  // The same problem, with names that live as long as the answers.
  MatmulProblem owned(MatmulProblem p) {
    p.choice = *choices_.emplace(p.choice).first;
    return p;
  }
  std::vector<MatmulProblem> owned(std::vector<MatmulProblem> products) {
    for (MatmulProblem& p : products) {
      p = owned(p);
    }
    return products;
  }
  const GatherProblem& owned(const GatherProblem& p) { return p; }
  const DequantizeProblem& owned(const DequantizeProblem& p) { return p; }

  std::set<std::string, std::less<>> choices_;
  std::unordered_map<Question, Plan, Hash> plans_;
};

// No lock: a thread builds and evaluates its graphs alone.
struct AllAnswers {
  Answers<MatmulProblem> matmul, swiglu, gradient;
  Answers<GatherProblem> gather, gather_swiglu, gather_gradient;
  Answers<DequantizeProblem> dequantize;
  Answers<std::vector<MatmulProblem>> joint;
};

AllAnswers& answers() {
  thread_local AllAnswers of_thread;
  return of_thread;
}

}  // namespace

Plan plan(const MatmulProblem& p, const DeviceProfile& device) {
  return answers().matmul.get(
      p, device, [&] { return nibble::plan(p, device); });
}

Plan plan(const GatherProblem& p, const DeviceProfile& device) {
  return answers().gather.get(
      p, device, [&] { return nibble::plan(p, device); });
}

Plan plan(const DequantizeProblem& p, const DeviceProfile& device) {
  return answers().dequantize.get(
      p, device, [&] { return nibble::plan(p, device); });
}

Plan plan_swiglu(const MatmulProblem& p, const DeviceProfile& device) {
  return answers().swiglu.get(
      p, device, [&] { return nibble::plan_swiglu(p, device); });
}

Plan plan_swiglu(const GatherProblem& p, const DeviceProfile& device) {
  return answers().gather_swiglu.get(
      p, device, [&] { return nibble::plan_swiglu(p, device); });
}

Plan plan_gradient(const MatmulProblem& p, const DeviceProfile& device) {
  return answers().gradient.get(
      p, device, [&] { return nibble::plan_gradient(p, device); });
}

Plan plan_gradient(const GatherProblem& p, const DeviceProfile& device) {
  return answers().gather_gradient.get(
      p, device, [&] { return nibble::plan_gradient(p, device); });
}

Plan plan_joint(const std::vector<MatmulProblem>& products,
                const DeviceProfile& device) {
  return answers().joint.get(
      products, device, [&] { return nibble::plan_joint(products, device); });
}

size_t kept() {
  AllAnswers& all = answers();
  return all.matmul.size() + all.swiglu.size() + all.gather.size() +
         all.gather_swiglu.size() + all.gradient.size() +
         all.gather_gradient.size() + all.dequantize.size() + all.joint.size();
}

}  // namespace nibble::plans

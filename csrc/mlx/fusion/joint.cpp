#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>

#include "csrc/core/planner.h"
#include "csrc/core/tiles.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/executor.h"
#include "csrc/mlx/facts/decision.h"
#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/nodes/quantized_matmul.h"
#include "csrc/mlx/plans.h"
#include "mlx/allocator.h"

namespace nibble::fusion {
namespace {

struct Part {
  std::weak_ptr<QuantizedMatmul> node;
  std::vector<mx::array> constants;  // w, scales, biases and perhaps the bias
  MatmulProblem problem;
  std::optional<mx::array> result;
};

class Joint : public JointProducts {
 public:
  explicit Joint(Part first) { parts_.push_back(std::move(first)); }

  // Adds a product. Returns false if one launch cannot compute it too.
  bool take(const std::shared_ptr<QuantizedMatmul>& node, const Part& part);

  bool compute(QuantizedMatmul& node,
               const mx::array& x,
               mx::array& out) override;

 private:
  std::mutex mutex_;
  std::vector<Part> parts_;
  bool begun_ = false;
};

// The last product that this thread built, and the identity of its x. A living
// product that has not begun keeps its x, so no other array has this identity.
struct Last {
  std::uintptr_t x = 0;
  std::weak_ptr<Joint> products;
};

thread_local Last last;

// The offset of the next result: kernels need it aligned.
size_t aligned(size_t bytes) {
  return (bytes + kOperandAlignment - 1) / kOperandAlignment *
         kOperandAlignment;
}

// True if a launch may read this array that its node does not wait for. Asked
// when the graph is built: inside an evaluation, an array also counts as
// available once its producer is enqueued.
bool is_ready(const mx::array& a) {
  return a.is_available() && a.flags().row_contiguous;
}

// True if one trusted launch computes these.
bool go_together(const std::vector<MatmulProblem>& products,
                 QuantizedMatmul& node) {
  return decision::joins(
      plans::plan_joint(products,
                        executor::device_profile(node.stream().device)),
      node.options());
}

bool Joint::take(const std::shared_ptr<QuantizedMatmul>& node,
                 const Part& part) {
  std::vector<MatmulProblem> products;
  {
    std::lock_guard lock(mutex_);
    auto other = parts_[0].node.lock();
    if (!other || other->stream() != node->stream()) {
      return false;
    }
    for (const Part& p : parts_) {
      products.push_back(p.problem);
    }
  }
  products.push_back(part.problem);
  // This may run the trials of kernels, so it must not run under the lock.
  if (!go_together(products, *node)) {
    return false;
  }
  std::lock_guard lock(mutex_);
  if (!begun_) {
    parts_.push_back(part);
  }
  return !begun_;
}

bool Joint::compute(QuantizedMatmul& node, const mx::array& x, mx::array& out) {
  std::lock_guard lock(mutex_);
  bool first = !begun_;
  begun_ = true;
  std::vector<Part*> wanted;
  std::vector<MatmulProblem> products;
  for (Part& part : parts_) {
    auto alive = part.node.lock();
    if (alive.get() == &node && part.result) {
      out.copy_shared_buffer(*part.result);
      part.result.reset();
      return true;
    }
    if (alive) {
      wanted.push_back(&part);
      products.push_back(part.problem);
    }
  }
  auto is_own = [&](const Part* p) { return p->node.lock().get() == &node; };
  auto launches =
      first && std::any_of(wanted.begin(), wanted.end(), is_own)
          ? plans::plan_joint(products,
                              executor::device_profile(node.stream().device))
          : nullptr;
  if (!launches) {
    return false;
  }

  // All results are parts of one buffer. It lives as long as one of them.
  size_t total = 0;
  for (const MatmulProblem& p : products) {
    total += aligned(out.nbytes() / out.shape(-1) * p.N);
  }
  mx::array memory({static_cast<int>(total)}, mx::uint8, nullptr, {});
  memory.set_data(mx::allocator::malloc(total));
  std::vector<mx::array> results;
  size_t offset = 0;
  for (const MatmulProblem& p : products) {
    mx::Shape shape = out.shape();
    shape.back() = p.N;
    results.push_back(bridge::view(memory, offset, shape, out.dtype()));
    offset += aligned(results.back().nbytes());
  }

  executor::Operands operands;
  operands[Operand::kX] = &x;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto& a = wanted[i]->constants;
    const JointOperands& of_product = kJointOperands[i];
    operands[of_product.w] = &a[0];
    operands[of_product.scales] = &a[1];
    operands[of_product.biases] = &a[2];
    operands[of_product.bias] = a.size() > 3 ? &a[3] : nullptr;
    operands[of_product.out] = &results[i];
  }
  executor::encode(*launches, operands, node.stream());
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (is_own(wanted[i])) {
      out.copy_shared_buffer(results[i]);
    } else {
      wanted[i]->result = results[i];
      // MLX keeps the inputs of this node until the GPU is done, and waits for
      // the launches that wrote them.
      auto& inputs = out.inputs();
      const auto& a = wanted[i]->constants;
      inputs.insert(inputs.end(), a.begin(), a.end());
    }
  }
  return true;
}

}  // namespace

void join_products(const std::shared_ptr<QuantizedMatmul>& node,
                   const mx::array& x,
                   const std::vector<mx::array>& inputs,
                   const MatmulProblem& problem) {
  if (executor::api() != Api::kMetal) {
    return;  // only Metal has kernels for several products
  }
  for (const mx::array& input : inputs) {
    if (input.is_tracer()) {
      return;
    }
  }
  Part part{node, {inputs.begin() + 1, inputs.end()}, problem, std::nullopt};
  if (!std::all_of(part.constants.begin(), part.constants.end(), is_ready)) {
    return;
  }
  auto before = last.products.lock();
  if (before && last.x == x.id() && before->take(node, part)) {
    node->join(std::move(before));
    return;
  }
  auto products = std::make_shared<Joint>(std::move(part));
  last = {x.id(), products};
  node->join(std::move(products));
}

}  // namespace nibble::fusion

// Nodes of MLX's graph for the layers between the products, on the CPU alone.
#pragma once

#include <functional>
#include <utility>
#include <variant>
#include <vector>

#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

// A node that MLX's own operations could stand for: function transforms are
// theirs.
class FastPrimitive : public mx::Primitive {
 public:
  using Primitive::Primitive;

  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;

  std::vector<mx::array> jvp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override;
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override;
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs,
      const std::vector<int>& axes) override;

 protected:
  // The same result by MLX's operations.
  virtual mx::array by_mlx(const std::vector<mx::array>& inputs) = 0;

 private:
  using Function =
      std::function<std::vector<mx::array>(const std::vector<mx::array>&)>;

  // by_mlx() of the inputs in argnums alone, and their values. The function
  // lives no longer than its arguments.
  std::pair<Function, std::vector<mx::array>> function_of(
      const std::vector<mx::array>& primals, const std::vector<int>& argnums);
};

// One of them that nothing but its options tells from another of its kind.
template <typename Kind, typename Options>
class FastNode : public FastPrimitive {
 public:
  explicit FastNode(mx::Stream stream, const Options& options = {})
      : FastPrimitive(stream), options_(options) {}

  const char* name() const override { return Kind::kName; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return options_ == static_cast<const FastNode&>(other).options_;
  }

  const Options& options() const { return options_; }

 protected:
  const Options options_;
};

}  // namespace nibble

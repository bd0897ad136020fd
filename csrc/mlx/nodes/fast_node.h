// Base classes of nodes that MLX's own operations could replace.
#pragma once

#include <functional>
#include <utility>
#include <variant>
#include <vector>

#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

// A node that computes the same as MLX's own operations. It takes its function
// transforms from them.
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

  // by_mlx() as a function of the inputs in argnums, and their values. The
  // function refers to both arguments and must not outlive them.
  std::pair<Function, std::vector<mx::array>> function_of(
      const std::vector<mx::array>& primals, const std::vector<int>& argnums);
};

// A node whose options alone tell it from others of its kind.
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

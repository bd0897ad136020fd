#include "csrc/mlx/nodes/fast_node.h"

#include "csrc/core/error.h"
#include "mlx/transforms.h"

namespace nibble {

void FastPrimitive::eval_gpu(const std::vector<mx::array>&,
                             std::vector<mx::array>&) {
  fail(name(), "a graph built for the CPU must be run on it");
}

std::vector<mx::array> FastPrimitive::jvp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& tangents,
    const std::vector<int>& argnums) {
  auto [function, at] = function_of(primals, argnums);
  return mx::jvp(function, at, tangents).second;
}

std::vector<mx::array> FastPrimitive::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  auto [function, at] = function_of(primals, argnums);
  return mx::vjp(function, at, cotangents).second;
}

std::pair<std::vector<mx::array>, std::vector<int>> FastPrimitive::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  Function function = [this](const std::vector<mx::array>& mapped) {
    return std::vector<mx::array>{by_mlx(mapped)};
  };
  return {mx::vmap(function, axes, {0})(inputs), {0}};
}

std::pair<FastPrimitive::Function, std::vector<mx::array>>
FastPrimitive::function_of(const std::vector<mx::array>& primals,
                           const std::vector<int>& argnums) {
  std::vector<mx::array> at;
  for (int arg : argnums) {
    at.push_back(primals[arg]);
  }
  Function function = [&, this](const std::vector<mx::array>& chosen) {
    std::vector<mx::array> inputs = primals;
    for (size_t i = 0; i < argnums.size(); ++i) {
      inputs[argnums[i]] = chosen[i];
    }
    return std::vector<mx::array>{by_mlx(inputs)};
  };
  return {std::move(function), std::move(at)};
}

}  // namespace nibble

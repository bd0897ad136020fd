// Products of one x that one launch computes: queries, keys and values on a
// GPU.
//
// They stay nodes of their own, each with its output, gradients and name, and
// know of each other. When MLX evaluates the first, all are launched together,
// and the others find their results made. So a graph is nowhere changed, and
// where something does not fit, each is computed by itself.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "csrc/core/problem.h"
#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

class QuantizedMatmul;

class JointProducts {
 public:
  // If a product of this x was the last that this thread built, and one launch
  // may compute the two, has them know of each other; else `node` is the first
  // of others that may follow. Its inputs are those of QuantizedMatmul. Not for
  // what is traced: such a graph is run more than once.
  static void offer(const std::shared_ptr<QuantizedMatmul>& node,
                    const mx::array& x,
                    const std::vector<mx::array>& inputs,
                    const MatmulProblem& problem);

  // Gives `out`, the output of `node`, its value, together with those of the
  // others; false if the node is to be computed by itself.
  bool compute(QuantizedMatmul& node, const mx::array& x, mx::array& out);

 private:
  struct Part {
    std::weak_ptr<QuantizedMatmul> node;
    std::vector<mx::array> constants;  // w, scales, biases and perhaps the bias
    MatmulProblem problem;
    std::optional<mx::array> result;
  };

  // Adds a product; false if it does not fit to those that there are.
  bool take(const std::shared_ptr<QuantizedMatmul>& node, const Part& part);

  // Whether one launch that can be trusted may compute these.
  static bool go_together(const std::vector<MatmulProblem>& products,
                          const mx::Device& device);

  std::mutex mutex_;
  std::vector<Part> parts_;
  bool begun_ = false;
};

}  // namespace nibble

// Queries, keys and values as one node: the products of one x with several
// matrices, split into heads, normalized and rotated.
#pragma once

#include <optional>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/mlx/nodes/layers.h"
#include "csrc/mlx/options.h"

namespace nibble {

// One of the products, and the steps after it.
struct Projection {
  QuantFormat format;
  ops::MatmulOptions options;
  Epilogue epilogue;
  int heads = 0;  // the output is [B, heads, L, D]; 0: the product itself
  std::optional<float> norm_eps = {};  // RMSNorm of each row of D
  bool has_norm_weight = false;
  std::optional<RopeOptions> rope = {};

  bool operator==(const Projection&) const = default;
};

// Inputs {x [B, L, K]}, then for each projection w, scales and biases. Then,
// each if there is one: the bias [N], the weight of the norm [D], the offsets
// and the periods of the rope. Outputs have the type of x; if that is float32,
// the type of a cache, too.
class ProjectedHeads : public mx::Primitive {
 public:
  ProjectedHeads(mx::Stream stream, std::vector<Projection> projections)
      : Primitive(stream), projections_(std::move(projections)) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleProjectedHeads"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return projections_ ==
           static_cast<const ProjectedHeads&>(other).projections_;
  }

 private:
  std::vector<Projection> projections_;
};

}  // namespace nibble

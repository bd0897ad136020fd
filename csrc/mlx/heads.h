// Queries, keys and values as one node: the products of one x with several
// matrices, cut into heads, normalized and rotated.
#pragma once

#include <optional>
#include <vector>

#include "csrc/mlx/fast_primitives.h"
#include "csrc/mlx/primitives.h"

namespace nibble {

// One of the products, and what becomes of it.
struct Projection {
  QuantFormat format;
  ops::MatmulOptions options;
  Epilogue epilogue;
  int heads = 0;  // the output is [B, heads, L, D]; 0: it is the product itself
  std::optional<float> norm_eps;  // RMSNorm of each row of D
  bool has_norm_weight = false;
  std::optional<RopeOptions> rope;
};

// Inputs {x [B, L, K]}, then for each projection w, scales, biases, and where
// it has them the bias [N], the weight of the norm [D], offsets and periods of
// the rope.
class ProjectedHeads : public mx::Primitive {
 public:
  ProjectedHeads(mx::Stream stream, std::vector<Projection> projections)
      : Primitive(stream), projections_(std::move(projections)) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleProjectedHeads"; }

 private:
  std::vector<Projection> projections_;
};

namespace fusion {

// If q, k [B, heads, L, D] and v are yet to be computed from products of one x,
// through MLX's views, our norm and rope and the cache's update, has one node
// compute as much of that as it can. Otherwise does nothing.
void join_heads(const mx::array& q, const mx::array& k, const mx::array& v);

// If x [B, L, heads * D] is the heads of our attention side by side, yet to be
// computed, has attention itself compute x: it lies in memory so.
void flatten_heads(const mx::array& x);

}  // namespace fusion

}  // namespace nibble

// Products of one x that one launch computes: queries, keys and values on a
// GPU.
//
// They stay nodes of their own, each with its output, gradients and name, and
// know of each other. When MLX evaluates the first, all are launched together,
// and the others find their results made. So a graph is nowhere changed, and
// where something does not fit, each is computed by itself.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/mlx/nodes/quantized_matmul.h"
#include "mlx/utils.h"

namespace nibble::fusion {

namespace mx = mlx::core;

// If a product of this x was the last that this thread built, and one launch
// may compute the two, has them know of each other; else `node` is the first
// of others that may follow. Its inputs are those of QuantizedMatmul. Not for
// what is traced: such a graph is run more than once.
void join_products(const std::shared_ptr<QuantizedMatmul>& node,
                   const mx::array& x,
                   const std::vector<mx::array>& inputs,
                   const MatmulProblem& problem);

// If q, k [B, heads, L, D] and v are yet to be computed from products of one x,
// through MLX's views, our norm and rope and the cache's update, has one node
// compute as much of that as it can. Otherwise does nothing.
void join_heads(const mx::array& q, const mx::array& k, const mx::array& v);

// If x [B, L, heads * D] is the heads of our attention side by side, yet to be
// computed, has attention itself compute x: it lies in memory so.
void flatten_heads(const mx::array& x);

// RMSNorm(h), if h is yet to be computed as the sum of a product of ours and
// something of its shape: one node then computes both. Else nullopt.
std::optional<mx::array> residual_norm(const mx::array& h,
                                       const std::optional<mx::array>& weight,
                                       float eps,
                                       const mx::Stream& stream);

// silu(gate) * up in one node with the products that gate and up are, if they
// are of one x and yet to be computed; nullopt if no node of ours does so.
std::optional<mx::array> gated_products(const mx::array& gate,
                                        const mx::array& up,
                                        mx::StreamOrDevice s);

}  // namespace nibble::fusion

// Functions that find, in a graph that is being built, nodes of ours that one
// node or one launch can compute together (graph.h).
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/mlx/nodes/quantized_matmul.h"
#include "mlx/utils.h"

namespace nibble::fusion {

namespace mx = mlx::core;

// Joins `node`, a product of x, to the last product that this thread built, if
// that has the same x and one launch computes both: queries, keys and values on
// a GPU. Does nothing for traced inputs: such a graph is run more than once.
//
// Joint products stay separate nodes, each with its output, gradients and name.
// When MLX evaluates the first, all are launched together, and the others find
// their results ready. So no graph changes, and a product that does not fit is
// computed by itself.
void join_products(const std::shared_ptr<QuantizedMatmul>& node,
                   const mx::array& x,
                   const std::vector<mx::array>& inputs,
                   const MatmulProblem& problem);

// Has one node compute the products of one x that q, k [B, heads, L, D] and v
// wait for. The node also computes the views, norms and ropes between them, if
// their order allows. Does nothing for another graph.
void join_heads(const mx::array& q, const mx::array& k, const mx::array& v);

// Has our attention compute x [B, L, heads * D], if x waits for the transposed
// heads of an attention: its memory has that layout already.
void flatten_heads(const mx::array& x);

// RMSNorm(h) from a node that also computes h, if h waits for the sum of a
// product of ours and an array of its shape; else nullopt.
std::optional<mx::array> residual_norm(const mx::array& h,
                                       const std::optional<mx::array>& weight,
                                       float eps,
                                       const mx::Stream& stream);

// Has a product of ours compute h, if h waits for the sum of the product and an
// array of its shape.
void add_residual(const mx::array& h);

// silu(gate) * up from a node that also computes the two products of one x that
// gate and up wait for; nullopt if no node of ours does so.
std::optional<mx::array> gated_products(const mx::array& gate,
                                        const mx::array& up,
                                        mx::StreamOrDevice s);

}  // namespace nibble::fusion

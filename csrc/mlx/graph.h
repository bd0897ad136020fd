// Nodes that have been built and not been computed.
//
// A node costs MLX some 10 us on the CPU, whatever it computes. So where one of
// our operations is given what others of ours have yet to compute, one node may
// take over the work of several. It does so in place: an array keeps its
// identity and its value and is only computed differently, whoever holds it.
//
// Nothing is taken over inside a function transformation: gradients, vmap and
// mx.compile see every operation as it was called.
#pragma once

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/primitives.h"

namespace nibble::graph {

namespace mx = mlx::core;

// True if `a` is the only output of a node of this name, and yet to be
// computed. By name, since MLX does not export what a dynamic_cast needs.
inline bool is_pending(const mx::array& a, const char* name) {
  return a.status() == mx::array::Status::unscheduled && a.has_primitive() &&
         a.siblings().empty() && !a.is_tracer() &&
         std::strcmp(a.primitive().name(), name) == 0;
}

// True if `a` depends on nothing that is yet to be computed: no node that takes
// it as an input can then become a part of itself.
inline bool is_constant(const mx::array& a) {
  return !a.has_primitive() && !a.is_tracer();
}

// Has these arrays, pending so far, be the outputs of one node.
inline void become(std::vector<mx::array> outputs,
                   const std::shared_ptr<mx::Primitive>& primitive,
                   const std::vector<mx::array>& inputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i].primitive_ptr() = primitive;
    outputs[i].inputs() = inputs;
    std::vector<mx::array> siblings = outputs;
    siblings.erase(siblings.begin() + static_cast<std::ptrdiff_t>(i));
    outputs[i].set_siblings(std::move(siblings), static_cast<uint16_t>(i));
  }
}

}  // namespace nibble::graph

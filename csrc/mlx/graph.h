// Reads and changes nodes that are built but not yet computed.
//
// Any node costs MLX some 10 us on the CPU. So if the inputs of one of our
// operations wait for other operations of ours, one node may take over the work
// of several. It does so in place: an array keeps its identity and its value
// for everybody who has it, and is only computed in another way.
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

// True if `a` is the only output of a node of this name and not yet computed.
// By name: MLX does not export the symbols that a dynamic_cast needs.
inline bool is_pending(const mx::array& a, const char* name) {
  return a.status() == mx::array::Status::unscheduled && a.has_primitive() &&
         a.siblings().empty() && !a.is_tracer() &&
         std::strcmp(a.primitive().name(), name) == 0;
}

// True if `a` depends on no node. A fused node with this input can then not
// become its own input.
inline bool is_constant(const mx::array& a) {
  return !a.has_primitive() && !a.is_tracer();
}

// True if `a` waits for none of these pending arrays, or of their siblings.
// False also if it waits for more nodes than are worth a search.
bool is_independent(const mx::array& a, const std::vector<mx::array>& of);

// Makes these pending arrays the outputs of one node.
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

// The matrices that are stored in the CPU backend's own layout (cpu/packed.h).
//
// A layer has lazy arrays in the place of its own: an evaluation would unpack
// them (nodes/unpack.h). Products recognise such arrays. Their nodes get
// stand-ins instead, which have the shapes and types of the arrays and the
// memory of the packed matrix. An array that was evaluated has forgotten the
// packed matrix, and is an array as any other.
#pragma once

#include <memory>
#include <optional>

#include "csrc/cpu/packed.h"
#include "csrc/mlx/options.h"
#include "csrc/mlx/packed_memory.h"
#include "mlx/array.h"

namespace nibble::repack {

namespace mx = mlx::core;

// A packed matrix. Its memory lives as long as one of the stand-ins.
struct Stored {
  mx::array w, scales;              // stand-ins
  std::optional<mx::array> biases;  // also one, if the format has biases
  std::shared_ptr<const cpu::Packed> packed;
};

// Returns the bytes of a matrix in the packed layout; 0 if the backend has no
// other layout for it. Evaluates nothing.
size_t bytes_of(const ops::QuantizedArrays& arrays, const QuantFormat& format);

// Packs a matrix and evaluates its arrays for this. nullptr if the backend has
// no other layout for it.
std::shared_ptr<const Stored> store(const ops::QuantizedArrays& arrays,
                                    const QuantFormat& format,
                                    PackedMemory& memory);

// The packed matrix of a stand-in for w; nullptr for any other array.
std::shared_ptr<const cpu::Packed> find(const mx::array& w);

// A packed matrix, and which of its arrays a lazy array is.
struct Part {
  std::shared_ptr<const Stored> stored;
  cpu::PackedPart part;
};

// The part that a lazy array unpacks; nullopt for any other array, and for one
// that was evaluated. It is safe while another thread evaluates the array.
std::optional<Part> part_of(const mx::array& a);

// The matrix of lazy arrays. Biases that are not read may be any array. nullptr
// for other arrays.
std::shared_ptr<const Stored> stored(const ops::QuantizedArrays& arrays);

// A node that unpacks this part exists from its construction on, until its
// destruction.
void enter(const mx::Primitive* node, Part part);
void leave(const mx::Primitive* node);

}  // namespace nibble::repack

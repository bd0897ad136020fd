// Records the graph that a decoder block's code builds for one token, so that
// later tokens need one node and none of the code.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "csrc/cpu/packed.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble {

struct Tape;

}  // namespace nibble

namespace nibble::record {

namespace mx = mlx::core;

// An array without a value: an input of the block while it is recorded.
mx::array hole(const mx::Shape& shape, mx::Dtype dtype, const mx::Stream& s);

// An array of the block's modules, whose values may change from call to call.
class Parameter {
 public:
  explicit Parameter(const mx::array& a);

  // The array as nodes take it; nullopt if it has another form than the one
  // that was recorded, or is not computed yet.
  std::optional<mx::array> resolved(const mx::array& now) const;

  bool is_packed() const { return form_.has_value(); }

 private:
  mx::Shape shape_;
  mx::Dtype dtype_;
  std::optional<cpu::PackedForm> form_;  // of a repacked matrix
};

// A run of the block's code with holes.
struct Run {
  mx::array x, position;          // holes
  std::optional<mx::array> mask;  // a hole
  mx::array y;                    // what the code made of them
  std::vector<mx::array> caches;  // with the token in them
  int row, keys;                  // as in Place
};

// The nodes of a run; nullptr if they cannot be run again for other tokens:
// they depend on the number of keys, or on arrays that are neither inputs nor
// `parameters`.
std::shared_ptr<const Tape> tape(const Run& run,
                                 const std::vector<mx::array>& parameters);

// True if two runs of other lengths made the same of it.
bool are_equivalent(const Tape& a, const Tape& b);

// The stream of the nodes.
mx::Stream stream_of(const Tape& tape);

// The inputs of a step beside x, and what it does with them (nodes/step.h).
struct Token {
  std::vector<mx::array*> caches;
  std::vector<mx::array> counters;
  std::vector<int> counted;
  std::optional<mx::array> mask;
  int row = 0, keys = 0, position = 0;
};

// Runs the nodes for a token, as one node. Returns the block's output and sets
// the counters to the next ones. Adds the token to the caches, in place of
// these arrays.
mx::array replay(const std::shared_ptr<const Tape>& tape,
                 const mx::array& x,
                 Token& token,
                 std::vector<mx::array> parameters);

}  // namespace nibble::record

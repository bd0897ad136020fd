// A decoder block as one node of MLX's graph, on the CPU alone: the nodes that
// its code once built for one token, evaluated in turn.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

// The nodes of a block for one token of each sequence. fusion/record.h makes
// it.
struct Tape {
  // An input of a node.
  struct Input {
    enum class Kind : uint8_t {
      kX,         // the block's input
      kPosition,  // of the token, int32: of all sequences, or of each
      kMask,
      kCache,      // the keys, in an array of the cache, that the token sees
      kParameter,  // an array of the block's modules
      kConstant,
      kResult,  // of an earlier node
    };
    Kind kind;
    // Which array of the cache, parameter, constant or result.
    size_t index = 0;

    bool operator==(const Input&) const = default;
  };
  struct Node {
    // Null: the node writes its input to an array of the cache.
    std::shared_ptr<mx::Primitive> primitive;
    std::vector<Input> inputs;
    size_t first_result = 0, result_count = 0;
    size_t cache = 0;
  };
  // In a shape: the number of keys that the token sees.
  static constexpr int kKeys = -1;
  struct Type {
    mx::Shape shape;
    mx::Dtype dtype;

    bool operator==(const Type&) const = default;
  };

  mx::Stream stream;
  std::vector<Node> nodes;
  std::vector<Type> results;
  std::vector<mx::array> constants;
  size_t output = 0;  // the result that is the block's

  // True if both compute the same.
  bool is_equivalent(const Tape& other) const;
};

// Where a cache takes a token.
struct Place {
  int row;       // of the cache's arrays
  int keys;      // that the token sees: the first ones, with its own
  int position;  // of all sequences; not used with an array of positions
};

// Inputs {x, arrays of a KV cache [B, heads, room, ..], counters [B], mask}.
// Outputs {y, the same arrays with the token in them, counters}. Arrays are
// written in place where nobody else has their memory. The first counter, if
// any, has the positions of the sequences.
class Step : public mx::Primitive {
 public:
  // `parameters` have been computed. `counted` is added to the counters.
  Step(std::shared_ptr<const Tape> tape,
       std::vector<mx::array> parameters,
       Place place,
       size_t caches,
       std::vector<int> counted);

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleStep"; }

 private:
  class Evaluation;
  // The arrays that tasks read, beside the inputs.
  struct Bound {
    std::shared_ptr<const Tape> tape;
    std::vector<mx::array> parameters;
    mx::array position;
  };

  std::shared_ptr<const Bound> bound_;
  Place place_;
  size_t caches_;
  std::vector<int> counted_;
};

// An input of a block that is recorded. It has no value: code that asks for one
// cannot be recorded.
class Hole : public mx::Primitive {
 public:
  using Primitive::Primitive;

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  static constexpr const char* kName = "NibbleHole";
  const char* name() const override { return kName; }
};

// A broadcast to the shape of the output, in the memory of the input. MLX's
// keeps the shape, which may depend on the number of keys.
class BroadcastView : public mx::Primitive {
 public:
  using Primitive::Primitive;

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleBroadcast"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }
};

}  // namespace nibble

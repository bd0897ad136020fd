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
      kPosition,  // of the token, an int32
      kKeys,      // the filled part of the cache, with the new token
      kValues,
      kParameter,  // an array of the block's modules
      kConstant,
      kResult,  // of an earlier node
    };
    Kind kind;
    size_t index = 0;  // of the parameter, the constant or the result

    bool operator==(const Input&) const = default;
  };
  struct Node {
    // Null: the node writes its input to the cache that `writes` names.
    std::shared_ptr<mx::Primitive> primitive;
    std::vector<Input> inputs;
    size_t first_result = 0, result_count = 0;
    Input::Kind writes = Input::Kind::kKeys;
  };
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

// Inputs {x, keys, values}: the arrays of a KV cache [B, heads, room, D].
// Outputs {y, keys, values}: with one more position. The caches are written in
// place where nobody else has their memory.
class Step : public mx::Primitive {
 public:
  enum Array { kX, kKeys, kValues };

  // `parameters` have been computed. The new token is at `position`.
  Step(std::shared_ptr<const Tape> tape,
       std::vector<mx::array> parameters,
       int position);

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleStep"; }

 private:
  // The arrays that tasks read, beside the inputs.
  struct Bound {
    std::shared_ptr<const Tape> tape;
    std::vector<mx::array> parameters;
    mx::array position;
  };

  std::shared_ptr<const Bound> bound_;
  int position_;
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

}  // namespace nibble

// Nodes of MLX's graph for the layers between the products, on the CPU alone.
#pragma once

#include <functional>
#include <utility>
#include <variant>
#include <vector>

#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

// A node that MLX's own operations could stand for: function transforms are
// theirs.
class FastPrimitive : public mx::Primitive {
 public:
  using Primitive::Primitive;

  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;

  std::vector<mx::array> jvp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override;
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override;
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs,
      const std::vector<int>& axes) override;

 protected:
  // The same result by MLX's operations.
  virtual mx::array by_mlx(const std::vector<mx::array>& inputs) = 0;

 private:
  using Function =
      std::function<std::vector<mx::array>(const std::vector<mx::array>&)>;

  // by_mlx() of the inputs in argnums alone, and their values. The function
  // lives no longer than its arguments.
  std::pair<Function, std::vector<mx::array>> function_of(
      const std::vector<mx::array>& primals, const std::vector<int>& argnums);
};

// One of them that nothing but its options tells from another of its kind.
template <typename Kind, typename Options>
class FastNode : public FastPrimitive {
 public:
  explicit FastNode(mx::Stream stream, const Options& options = {})
      : FastPrimitive(stream), options_(options) {}

  const char* name() const override { return Kind::kName; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return options_ == static_cast<const FastNode&>(other).options_;
  }

  const Options& options() const { return options_; }

 protected:
  const Options options_;
};

// Inputs {x [..., D]} or {x, weight [D]}. Its option is eps.
class RmsNormPrimitive : public FastNode<RmsNormPrimitive, float> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleRMSNorm";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

struct RopeOptions {
  int dims;
  bool traditional;
  float base;  // unused with an array of periods
  float scale;
  int offset;  // unused with an array of offsets
  bool has_offsets, has_periods;

  bool operator==(const RopeOptions&) const = default;
};

// Inputs {x [B, ..., L, D]}, then int32 offsets [] or [B] if has_offsets,
// then float32 periods [dims / 2] if has_periods.
class RopePrimitive : public FastNode<RopePrimitive, RopeOptions> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleRoPE";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

struct AttentionOptions {
  float scale;
  bool causal;
  bool has_mask, has_sinks;
  bool batch_invariant;
  // Keys and values that count, of more that there is room for; 0: all.
  int keys = 0;
  // The output is [B, L, heads * Dv] instead of [B, heads, L, Dv].
  bool flat = false;

  bool operator==(const AttentionOptions&) const = default;
};

// Inputs {q [B, heads, L, D], k [B, kv_heads, S, D], v [B, kv_heads, S, Dv]},
// then a mask that broadcasts to [B, heads, L, S], its last dimension S, if
// has_mask, then float32 sinks [heads] if has_sinks. If `keys` is set, S is
// that and k and v may be longer.
class AttentionPrimitive
    : public FastNode<AttentionPrimitive, AttentionOptions> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleAttention";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

// Inputs {x [..., D]}, to [..., 1].
class LogSumExpPrimitive : public FastNode<LogSumExpPrimitive, std::monostate> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleLogSumExp";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

// Inputs {gate, up} of one shape and type.
class SwigluPrimitive : public FastNode<SwigluPrimitive, std::monostate> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleSwiGLU";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

}  // namespace nibble

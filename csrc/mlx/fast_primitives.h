// Nodes of MLX's graph for the layers between the products, on the CPU alone.
#pragma once

#include <functional>
#include <utility>
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

// Inputs {x [..., D]} or {x, weight [D]}.
class RmsNormPrimitive : public FastPrimitive {
 public:
  RmsNormPrimitive(mx::Stream stream, float eps)
      : FastPrimitive(stream), eps_(eps) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  static constexpr const char* kName = "NibbleRMSNorm";
  const char* name() const override { return kName; }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  float eps() const { return eps_; }

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;

 private:
  float eps_;
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
class RopePrimitive : public FastPrimitive {
 public:
  RopePrimitive(mx::Stream stream, const RopeOptions& options)
      : FastPrimitive(stream), options_(options) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  static constexpr const char* kName = "NibbleRoPE";
  const char* name() const override { return kName; }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  const RopeOptions& options() const { return options_; }

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;

 private:
  RopeOptions options_;
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
class AttentionPrimitive : public FastPrimitive {
 public:
  AttentionPrimitive(mx::Stream stream, const AttentionOptions& options)
      : FastPrimitive(stream), options_(options) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  static constexpr const char* kName = "NibbleAttention";
  const char* name() const override { return kName; }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  const AttentionOptions& options() const { return options_; }

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;

 private:
  AttentionOptions options_;
};

// Inputs {x [..., D]}, to [..., 1].
class LogSumExpPrimitive : public FastPrimitive {
 public:
  using FastPrimitive::FastPrimitive;

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleLogSumExp"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

// Inputs {gate, up} of one shape and type.
class SwigluPrimitive : public FastPrimitive {
 public:
  using FastPrimitive::FastPrimitive;

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleSwiGLU"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

}  // namespace nibble

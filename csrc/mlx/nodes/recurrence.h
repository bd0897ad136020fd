// Linear recurrences as nodes of MLX's graph, on the CPU alone. Their
// operations leave arrays inside a function transformation to MLX, so they have
// no transforms of their own.
#pragma once

#include <vector>

#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

struct RecurrenceOptions {
  // The inputs, all in float32, float16 or bfloat16; gates are float32.
  enum Kind {
    kGatedDelta,  // q, k [B, T, Hk, Dk], v [B, T, Hv, Dv], beta [B, T, Hv],
                  // decay [B, T, Hv] or [B, T, Hv, Dk].
    kStateSpace,  // c, b [B, T, Hk, Dk], x [B, T, Hv, Dv], dt [B, T, Hv],
                  // dt_bias, log_rates, skip [Hv].
    kRwkv7,       // r, k, v, a, b [B, T, H, D], w [B, T, H, D].
  };
  Kind kind;
  float least = 0, most = 0;  // of a state-space model's time steps
  bool has_state = false;     // float32 [B, Hv, Dv, Dk]
  bool has_mask = false;      // booleans [B, T]
};

// Inputs as above, then the state and the mask if there are any. Outputs y
// [B, T, Hv, Dv] and the new state.
class RecurrencePrimitive : public mx::Primitive {
 public:
  RecurrencePrimitive(mx::Stream stream, const RecurrenceOptions& options)
      : Primitive(stream), options_(options) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleRecurrence"; }

 private:
  const RecurrenceOptions options_;
};

// Inputs delta, x [B, T, C], b, c [B, T, N], float32 rates [C, N] and skip [C],
// then float32 state [B, C, N] if has_state. Outputs y [B, T, C] and the new
// state.
class SelectiveScanPrimitive : public mx::Primitive {
 public:
  SelectiveScanPrimitive(mx::Stream stream, bool has_state)
      : Primitive(stream), has_state_(has_state) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleSelectiveScan"; }

 private:
  const bool has_state_;
};

}  // namespace nibble

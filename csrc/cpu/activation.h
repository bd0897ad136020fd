// Elementwise functions between the products.
#pragma once

namespace nibble::cpu {

enum class Activation {
  kSilu,         // x / (1 + e^-x).
  kGelu,         // x times the normal distribution function of x.
  kGeluTanh,     // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
  kGeluSigmoid,  // x / (1 + e^(-1.702 x)).
  kReluSquared,  // max(x, 0)^2.
  kTanh,
  kSigmoid,  // 1 / (1 + e^-x).
  kClipped,  // x' / (1 + e^(-alpha x')), x' = min(x, limit).
};

// alpha and limit are read for kClipped only. Its second factor is
// clip(x, -limit, limit) + 1.
struct ActivationOptions {
  Activation kind = Activation::kSilu;
  float alpha = 0, limit = 0;

  bool operator==(const ActivationOptions&) const = default;
};

}  // namespace nibble::cpu

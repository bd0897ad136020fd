// The arguments that the operations of quantized matrices share.
#pragma once

#include <optional>
#include <string>

#include "csrc/core/cpu_plan.h"
#include "csrc/core/format.h"
#include "mlx/array.h"

namespace nibble::ops {

namespace mx = mlx::core;

// A quantized matrix [..., N, K] as mlx::core::quantize returns it.
struct QuantizedArrays {
  mx::array w, scales;
  std::optional<mx::array> biases;
  std::optional<mx::array> global_scale = {};  // of MLX's nvfp4 mode only

  // The inputs of a node as MLX takes them: without biases if the mode stores
  // none.
  static QuantizedArrays of(const QuantFormat& format,
                            const mx::array& w,
                            const mx::array& scales,
                            const mx::array& biases) {
    return {w,
            scales,
            format.info().stores_biases ? std::optional(biases) : std::nullopt};
  }
  // The input of a node in the place of the biases: the scales if the mode
  // stores none.
  const mx::array& biases_input() const { return biases ? *biases : scales; }
};

// The mode that MLX's functions take by default.
inline constexpr const char* kDefaultMode =
    mode_info(Mode::kAffine).mlx_name.data();

// The format of a matrix as MLX's functions take it.
struct QuantArgs {
  std::optional<int> group_size, bits;
  std::string mode = kDefaultMode;

  static QuantArgs of(const QuantFormat& format) {
    return {format.group_size,
            format.bits,
            std::string(mode_info(format.mode).mlx_name)};
  }

  // The format that these mean, in the default mode if the mode is not ours.
  QuantFormat format() const {
    const ModeInfo* ours = find_mode(mode);
    const ModeInfo& info = ours ? *ours : *find_mode(kDefaultMode);
    return {bits.value_or(info.default_bits),
            group_size.value_or(info.default_group_size),
            info.mode};
  }
  // True if our kernels support the format; MLX computes all others.
  bool is_ours() const { return find_mode(mode) && supported(format()); }
};

// The matrices that each product chooses; without indices, each in turn.
struct GatherIndices {
  std::optional<mx::array> lhs, rhs;
  bool sorted = false;  // rhs never falls

  bool any() const { return lhs || rhs; }
};

// The options of a product beyond MLX's own arguments.
struct MatmulOptions {
  // The most that activations are rounded where the device multiplies integers
  // faster.
  Activations activations = Activations::kExact;
  // The bits of a row of the result do not depend on the other rows.
  bool batch_invariant = false;
  // The caller knows that all biases are -2^(bits - 1) * scales; kernels then
  // do not read them. The same holds for matrices that facts/symmetric.h knows.
  bool symmetric = false;
  // A GPU's tiles may hold bfloat numbers in half where these fit into it.
  bool half_tiles = false;
  // The number of a table of the fastest candidates (facts/tuning.h); 0: none.
  int tuning = 0;

  bool operator==(const MatmulOptions&) const = default;
};

// Terms that are added to a product before it is rounded, in the type of x.
struct Addends {
  std::optional<mx::array> bias;      // [N]
  std::optional<mx::array> residual;  // of the result's shape

  bool any() const { return bias || residual; }
};

}  // namespace nibble::ops

// The operations of mlx::core::fast, SwiGLU and logsumexp, on our CPU kernels.
// MLX's operations replace them, when the graph is built, on other devices and
// for arguments that our kernels do not support or that are wrong.
//
// ops/ defines them; ops.h says why the declarations stand here.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"

namespace nibble::fast {

namespace mx = mlx::core;

mx::array rms_norm(const mx::array& x,
                   const std::optional<mx::array>& weight,
                   float eps,
                   mx::StreamOrDevice s);

mx::array rope(const mx::array& x,
               int dims,
               bool traditional,
               std::optional<float> base,
               float scale,
               const std::variant<int, mx::array>& offset,
               const std::optional<mx::array>& freqs,
               mx::StreamOrDevice s);

mx::array scaled_dot_product_attention(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    float scale,
    const std::variant<std::monostate, std::string, mx::array>& mask,
    const std::optional<mx::array>& sinks,
    bool force_fused,
    bool batch_invariant,
    mx::StreamOrDevice s);

// mlx-lm's function: attention over codes, scales and biases of keys and of
// values, as its QuantizedKVCache has them.
mx::array quantized_scaled_dot_product_attention(
    const mx::array& q,
    const std::vector<mx::array>& keys,
    const std::vector<mx::array>& values,
    float scale,
    const std::variant<std::monostate, std::string, mx::array>& mask,
    const std::optional<mx::array>& sinks,
    int group_size,
    int bits,
    bool batch_invariant,
    mx::StreamOrDevice s);

// Over the given axes, or over all.
mx::array logsumexp(const mx::array& a,
                    const std::optional<std::vector<int>>& axes,
                    bool keepdims,
                    mx::StreamOrDevice s);

// silu(gate) * up.
mx::array swiglu(const mx::array& gate,
                 const mx::array& up,
                 mx::StreamOrDevice s);

}  // namespace nibble::fast

// The operations of mlx::core::fast, SwiGLU, logsumexp and argmax, on our CPU
// kernels. MLX's operations replace them, when the graph is built, on other
// devices and for arguments that our kernels do not support or that are wrong.
//
// ops/ defines them; ops.h says why the declarations stand here.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "csrc/cpu/activation.h"
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
    float cap,
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
    float cap,
    mx::StreamOrDevice s);

// Over the given axes, or over all.
mx::array logsumexp(const mx::array& a,
                    const std::optional<std::vector<int>>& axes,
                    bool keepdims,
                    mx::StreamOrDevice s);

// Along the given axis, or of the flattened array.
mx::array argmax(const mx::array& a,
                 std::optional<int> axis,
                 bool keepdims,
                 mx::StreamOrDevice s);

// silu(gate) * up.
mx::array swiglu(const mx::array& gate,
                 const mx::array& up,
                 mx::StreamOrDevice s);

mx::array layer_norm(const mx::array& x,
                     const std::optional<mx::array>& weight,
                     const std::optional<mx::array>& bias,
                     float eps,
                     mx::StreamOrDevice s);

// The activation of x, times up if there is one. nullopt if no kernel of ours
// computes that.
std::optional<mx::array> activation(const cpu::ActivationOptions& options,
                                    const mx::array& x,
                                    const std::optional<mx::array>& up,
                                    mx::StreamOrDevice s);

mx::array conv1d(const mx::array& x,
                 const mx::array& w,
                 int stride,
                 int padding,
                 int dilation,
                 int groups,
                 mx::StreamOrDevice s);

// x @ w^T + bias, w [N, K] not quantized. MLX's product where no kernel of ours
// computes it.
mx::array linear(const mx::array& x,
                 const mx::array& w,
                 const std::optional<mx::array>& bias,
                 mx::StreamOrDevice s);

// mlx::core::gather_mm. Our kernels read weights w that lie transposed, as
// those of mlx-lm's experts do. MLX computes the others, and function
// transformations.
mx::array gather_mm(const mx::array& x,
                    const mx::array& w,
                    const std::optional<mx::array>& lhs,
                    const std::optional<mx::array>& rhs,
                    bool sorted,
                    mx::StreamOrDevice s);

// Recurrences (nodes/recurrence.h): the results and the new state. nullopt if
// no kernel of ours computes that, or inside a function transformation.
using Recurrent = std::optional<std::pair<mx::array, mx::array>>;

Recurrent gated_delta(const mx::array& q,
                      const mx::array& k,
                      const mx::array& v,
                      const mx::array& decay,
                      const mx::array& beta,
                      const std::optional<mx::array>& state,
                      const std::optional<mx::array>& mask,
                      mx::StreamOrDevice s);

Recurrent state_space(const mx::array& x,
                      const mx::array& log_rates,
                      const mx::array& b,
                      const mx::array& c,
                      const mx::array& skip,
                      const mx::array& dt,
                      const mx::array& dt_bias,
                      const std::pair<float, float>& limits,
                      const std::optional<mx::array>& state,
                      const std::optional<mx::array>& mask,
                      mx::StreamOrDevice s);

Recurrent rwkv7(const mx::array& r,
                const mx::array& w,
                const mx::array& k,
                const mx::array& v,
                const mx::array& a,
                const mx::array& b,
                const std::optional<mx::array>& state,
                mx::StreamOrDevice s);

Recurrent selective_scan(const mx::array& delta,
                         const mx::array& x,
                         const mx::array& b,
                         const mx::array& c,
                         const mx::array& rates,
                         const mx::array& skip,
                         const std::optional<mx::array>& state,
                         mx::StreamOrDevice s);

}  // namespace nibble::fast

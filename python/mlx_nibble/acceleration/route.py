"""Which names in a layer's code mean our operations.

In a quantized layer, the products: as MLX's own layers call them, mlx-lm's, or those
of a model that nobody has written yet. On the CPU, also what lies between the
products, in every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import mlx.core as mx
import mlx.nn as mlx_nn

from mlx_nibble import _native, fast, nn, ops
from mlx_nibble.acceleration.rebind import Rebinding, Rebound

# What a quantized layer multiplies or looks up with.
PRODUCTS = frozenset({"quantized_matmul", "gather_qmm", "dequantize"})


def _between(batch_invariant: bool) -> dict[str, Callable]:
    """What lies between the products, on the CPU."""
    attention = fast.scaled_dot_product_attention
    if batch_invariant:
        attention = partial(attention, batch_invariant=True)
    return {
        "mlx.core.fast.rms_norm": fast.rms_norm,
        "mlx.core.fast.rope": fast.rope,
        "mlx.core.fast.scaled_dot_product_attention": attention,
        "mlx_lm.models.activations.swiglu": fast.swiglu,
    }


@cache
def quantized_layers(
    activations: str | None, batch_invariant: bool, on_cpu: bool, tuning: int = 0
) -> Rebinding:
    """Quantized layers on our kernels, with these settings of the products."""
    settings = {"activations": activations, "batch_invariant": batch_invariant}
    functions: dict[str, Callable] = {
        "mlx.core.quantized_matmul": partial(
            ops.quantized_matmul, **settings, tuning=tuning
        ),
        "mlx.core.gather_qmm": partial(ops.gather_qmm, **settings),
        "mlx.core.dequantize": ops.dequantize,
    }
    return Rebinding(
        functions | _between(batch_invariant) if on_cpu else functions,
        {
            mlx_nn.QuantizedLinear: Rebound(
                nn.with_settings(nn.QuantizedLinear, **settings, tuning=tuning),
                {"__call__": frozenset({"quantized_matmul"})},
            ),
            mlx_nn.QuantizedEmbedding: Rebound(
                nn.with_settings(nn.QuantizedEmbedding, **settings, tuning=tuning),
                {
                    "__call__": frozenset({"dequantize"}),
                    "as_linear": frozenset({"quantized_matmul"}),
                },
            ),
        },
    )


@cache
def other_layers(batch_invariant: bool, on_cpu: bool) -> Rebinding:
    """The other layers on our operations.

    On the CPU, all that lies between the products, and those of a quantized KV
    cache. On a GPU, SwiGLU where it becomes one launch with gate and up.
    """
    if not on_cpu:
        return Rebinding({"mlx_lm.models.activations.swiglu": _swiglu_on_gpu})
    products = {"mlx.core.quantized_matmul": ops.quantized_matmul}
    return Rebinding(products | _between(batch_invariant))


def _swiglu_on_gpu(gate: mx.array, x: mx.array) -> mx.array:
    fused = _native.ext and _native.ext.gated_products(gate, x)
    return _compiled_swiglu()(gate, x) if fused is None else fused


@cache
def _compiled_swiglu() -> Callable[[mx.array, mx.array], mx.array]:
    """What mlx-lm's own is."""
    return mx.compile(lambda gate, x: mlx_nn.silu(gate) * x, shapeless=True)

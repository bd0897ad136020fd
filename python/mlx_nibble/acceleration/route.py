"""The names in a layer's code that stand for our operations.

In a quantized layer these are the products, in MLX's layers, mlx-lm's and those of any
other model. On the CPU, they are also the operations between the products, in every
layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn

from mlx_nibble import _native, fast, nn
from mlx_nibble._arguments import activation_bits
from mlx_nibble.acceleration import by_query, stand_ins
from mlx_nibble.acceleration.rebind import Rebinding, Rebound

# Operations of a quantized layer: multiply, or look rows up.
PRODUCTS = frozenset({"quantized_matmul", "gather_qmm", "dequantize"})

GEGLU = (
    "mlx_lm.models.gemma4_text.geglu",
    "mlx_vlm.models.gemma4.language.geglu",
    "mlx_vlm.models.gemma4_text.language.geglu",
)
OVER_CODES = (
    "mlx_lm.models.base.quantized_scaled_dot_product_attention",
    "mlx_vlm.models.base.quantized_scaled_dot_product_attention",
)
GATED_DELTA = (
    "mlx_lm.models.gated_delta.gated_delta_ops",
    "mlx_vlm.models.gated_delta.gated_delta_ops",
    "mlx_vlm.models.qwen3_5.gated_delta.gated_delta_ops",
    "mlx_vlm.models.qwen3_5.gated_delta.gated_delta_chunked",
)
STATE_SPACE = ("mlx_lm.models.ssm.ssm_attn", "mlx_vlm.models.ssm.ssm_attn")
ACTIVATIONS = (
    "mlx.nn.silu",
    "mlx.nn.gelu",
    "mlx.nn.gelu_approx",
    "mlx.nn.gelu_fast_approx",
    "mlx.nn.relu2",
    "mlx.nn.sigmoid",
    "mlx.nn.tanh",
    "mlx.core.sigmoid",
    "mlx.core.tanh",
)
# The methods of layers that are not quantized.
DENSE: dict[str, Callable] = {
    "mlx.nn.layers.linear.Linear.__call__": stand_ins.linear,
    "mlx.nn.layers.embedding.Embedding.as_linear": stand_ins.as_linear,
    "mlx.core.gather_mm": fast.gather_mm,
    "mlx_lm.models.mla.MultiLinear.__call__": stand_ins.multi_linear,
}


def _between(batch_invariant: bool) -> dict[str, Callable]:
    """Return the operations between the products, on the CPU."""
    # Layers call the extension itself: functions of Python around it take as long.
    own = _native.ext or fast
    attention: Callable = own.scaled_dot_product_attention
    over_codes: Callable = fast.quantized_scaled_dot_product_attention
    if batch_invariant:
        attention = partial(attention, batch_invariant=True)
        over_codes = partial(over_codes, batch_invariant=True)
    return {
        "mlx.core.fast.layer_norm": fast.layer_norm,
        "mlx.core.fast.rms_norm": own.rms_norm,
        "mlx.core.fast.rope": own.rope,
        "mlx.core.fast.scaled_dot_product_attention": attention,
        **dict.fromkeys(OVER_CODES, over_codes),
        "mlx_lm.models.activations.swiglu": own.swiglu,
        stand_ins.PRECISE_SWIGLU: stand_ins.precise_swiglu,
        stand_ins.SWIGLU_OAI: stand_ins.swiglu_oai,
        stand_ins.RWKV7: stand_ins.rwkv7,
        stand_ins.MAMBA: stand_ins.mamba,
        stand_ins.JAMBA: stand_ins.jamba,
        "mlx.core.conv1d": fast.conv1d,
        stand_ins.GEMMA2: stand_ins.gemma2_attention(batch_invariant),
        stand_ins.SOFTCAP: stand_ins.softcap_attention(batch_invariant),
        stand_ins.WHISPER: stand_ins.whisper_attention,
        stand_ins.BERT: stand_ins.bert_attention,
        "mlx_vlm.models.activations.swiglu": fast.swiglu,
    } | _by_name()


@cache
def _by_name() -> dict[str, Callable]:
    """Return the functions that several modules have."""
    made = {name: stand_ins.activation(name) for name in ACTIVATIONS}
    made |= {name: stand_ins.gated(name, "gelu_approx") for name in GEGLU}
    made |= {name: stand_ins.gated_delta(name) for name in GATED_DELTA}
    return made | {name: stand_ins.state_space(name) for name in STATE_SPACE}


def _with(name: str, given: dict[str, Any]) -> Callable:
    """Return an operation of the extension with these keyword arguments.

    Those that are false are left out: a call is as fast as it has few arguments.
    """
    operation = getattr(_native.ext or mx, name)
    needed = {key: value for key, value in given.items() if value}
    return partial(operation, **needed) if needed and _native.ext else operation


@cache
def quantized_layers(options: nn.Options, on_cpu: bool) -> Rebinding:
    """Return the quantized layers on our kernels, with these options."""
    given = {
        "activation_bits": activation_bits("accelerate", options.activations),
        "batch_invariant": options.batch_invariant,
        "tuning": options.tuning,
    }
    # A CPU has one way to compute products that choose experts.
    chosen = given | {"tuning": 0 if on_cpu else options.tuning}
    functions: dict[str, Callable] = {
        "mlx.core.quantized_matmul": _with("quantized_matmul", given),
        "mlx.core.gather_qmm": _with("gather_qmm", chosen),
        "mlx.core.dequantize": _with("dequantize", {"tuning": options.tuning}),
    }
    return Rebinding(
        functions | _between(options.batch_invariant) if on_cpu else functions,
        {
            mlx_nn.QuantizedLinear: Rebound(
                nn.with_options(nn.QuantizedLinear, options),
                {"__call__": frozenset({"quantized_matmul"})},
            ),
            mlx_nn.QuantizedEmbedding: Rebound(
                nn.with_options(nn.QuantizedEmbedding, options),
                {
                    "__call__": frozenset({"dequantize"}),
                    "as_linear": frozenset({"quantized_matmul"}),
                },
            ),
        },
    )


@cache
def other_layers(batch_invariant: bool, on_cpu: bool) -> Rebinding:
    """Return the other layers on our operations.

    On the CPU, these are the operations between the products, and products that belong
    to no layer. On a GPU, it is SwiGLU that becomes one launch with gate and up. On
    CUDA, it is also attention that has to be batch-invariant.
    """
    if not on_cpu:
        on_gpu: dict[str, Callable] = {
            "mlx_lm.models.activations.swiglu": _swiglu_on_gpu
        }
        if batch_invariant and mx.cuda.is_available():
            on_gpu["mlx.core.fast.scaled_dot_product_attention"] = by_query.attention
        return Rebinding(on_gpu)
    given = {"batch_invariant": batch_invariant}
    products = {"mlx.core.quantized_matmul": _with("quantized_matmul", given)}
    return Rebinding(products | DENSE | _between(batch_invariant))


def _swiglu_on_gpu(gate: mx.array, x: mx.array) -> mx.array:
    fused = _native.ext and _native.ext.gated_products(gate, x)
    return _compiled_swiglu()(gate, x) if fused is None else fused


@cache
def _compiled_swiglu() -> Callable[[mx.array, mx.array], mx.array]:
    """Return the function that mlx-lm uses."""
    return mx.compile(lambda gate, x: mlx_nn.silu(gate) * x, shapeless=True)

"""Quantized models of five families: stock, accelerated, and in float64."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

import mlx_nibble
from mlx_nibble.acceleration import shared_modules
from mlx_nibble.acceleration.accelerate import is_quantized
from mlx_nibble.acceleration.rebind import Rebinding
from tests.support import layer_oracle, tiny_models
from tests.support.arrays import to_numpy
from tests.support.oracle import Weights
from tests.support.tolerance import relative_rms

# Grouped queries, normalized queries, sliding windows, experts, latent attention.
FAMILIES = ("llama", "qwen3", "gemma3_text", "qwen3_moe", "deepseek_v3")
GROUP_SIZE = 32


def stock(
    family: str, dtype: mx.Dtype = mx.float32, bits: int = 4, seed: int = 0
) -> nn.Module:
    """Return a model with every layer quantized and none accelerated."""
    # A quantized cache needs head sizes that are multiples of 32.
    heads = {} if family == "deepseek_v3" else {"head_dim": 32}
    model = tiny_models.build(family, seed, **heads)
    model.set_dtype(dtype)
    nn.quantize(model, GROUP_SIZE, bits)
    mx.eval(model.parameters())
    return model


def ours(
    family: str, dtype: mx.Dtype = mx.float32, bits: int = 4, seed: int = 0
) -> nn.Module:
    """Return the same model, accelerated."""
    model = stock(family, dtype, bits, seed)
    report = mlx_nibble.accelerate(model)
    assert report.swapped and not report.kept, str(report)
    return model


def exact(
    family: str, dtype: mx.Dtype = mx.float32, bits: int = 4, seed: int = 0
) -> nn.Module:
    """Return the logits of the same dequantized weights, computed in float64."""
    model = stock(family, dtype, bits, seed)
    quantized = [(p, m) for p, m in model.named_modules() if is_quantized(m)]
    dense = [(path, _Dense(module)) for path, module in quantized]
    model.update_modules(tree_unflatten(dense))
    model.apply(lambda a: a.astype(mx.float64))
    # MLX computes angles, norms and exponentials in float32, even for float64 arrays.
    rebinding = Rebinding(
        {
            "mlx.core.fast.rms_norm": _rms_norm,
            "mlx.core.fast.rope": _rope,
            "mlx.core.fast.scaled_dot_product_attention": _attention,
            "mlx_lm.models.activations.swiglu": _swiglu,
        }
    )
    shared_modules.replace(model, lambda kind: True, [])
    for module in model.modules():
        rebound = rebinding.subclass(type(module))
        if rebound is not None:
            module.__class__ = rebound.kind
    return model


def logit_errors(family: str, dtype: mx.Dtype, seed: int) -> tuple[float, float]:
    """Return the relative RMS errors of stock and our logits, for a prompt of 40."""
    ids = tiny_models.tokens(1, 40, seed=100 + seed)[0]
    reference = to_numpy(exact(family, dtype, seed=seed)(ids))
    off_stock, off_ours = (
        relative_rms(to_numpy(make(family, dtype, seed=seed)(ids)), reference)
        for make in (stock, ours)
    )
    return off_stock, off_ours


def _float64(a):
    return None if a is None else np.array(a.astype(mx.float64))


def _rms_norm(x, weight, eps):
    y = layer_oracle.rms_norm(_float64(x), _float64(weight), eps)
    return mx.array(y, mx.float64)


def _rope(x, dims, *, traditional, base, scale, offset, freqs=None):
    x, freqs, offsets = _float64(x), _float64(freqs), np.array(offset)
    offsets = np.broadcast_to(offsets, len(x))
    y, _ = layer_oracle.rope(x, dims, traditional, base, scale, offsets, freqs)
    return mx.array(y, mx.float64)


def _attention(q, k, v, *, scale, mask=None, sinks=None):
    if isinstance(mask, mx.array):
        mask = np.array(mask)
    q, k, v, sinks = map(_float64, (q, k, v, sinks))
    y, _ = layer_oracle.attention(q, k, v, scale, mask, sinks)
    return mx.array(y, mx.float64)


def _swiglu(gate, x):
    return mx.array(layer_oracle.swiglu(_float64(gate), _float64(x)), mx.float64)


class _Dense(nn.Module):
    """Computes a quantized layer by its definition."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        w = Weights(
            np.array(layer.weight),
            to_numpy(layer.scales),
            to_numpy(layer.biases),
            layer.bits,
            layer.group_size,
        )
        self.weight = mx.array(w.dequantize(), mx.float64)
        if "bias" in layer:
            self.bias = layer.bias
        self._kind = type(layer).__name__

    def __call__(self, x, indices=None, sorted_indices=False, transpose=True):
        if self._kind == "QuantizedEmbedding":
            return self.weight[x]
        weight = self.weight if indices is None else self.weight[indices]
        y = x @ (weight.swapaxes(-1, -2) if transpose else weight)
        if "bias" not in self:
            return y
        bias = self.bias
        return y + (bias if indices is None else bias[indices][..., None, :])

    def as_linear(self, x):
        return x @ self.weight.T

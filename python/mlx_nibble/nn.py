"""Layers that compute with our kernels.

Subclasses of MLX's with the same parameters, so that saving, loading, LoRA,
sharding and every ``isinstance`` go on working. Settings belong to the class: a layer
holds nothing that MLX's does not.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble import ops
from mlx_nibble._pickling import pickled_as


def _product(layer: Any, x: mx.array, bias: mx.array | None = None) -> mx.array:
    """``x @ w_hat.T + bias`` with a quantized layer's weights and settings."""
    return ops.quantized_matmul(
        x,
        layer["weight"],
        layer["scales"],
        layer.get("biases"),
        True,
        layer.group_size,
        layer.bits,
        layer.mode,
        bias=bias,
        activations=layer._activations,
        batch_invariant=layer._batch_invariant,
        tuning=layer._tuning,
    )


class QuantizedLinear(nn.QuantizedLinear):
    """:class:`mlx.nn.QuantizedLinear` on our kernels."""

    _activations: str | None = None
    _batch_invariant: bool = False
    _tuning: int = 0

    def __call__(self, x: mx.array) -> mx.array:
        """Return ``x @ w_hat.T + bias``, ``[..., output_dims]``."""
        bias = self.get("bias")
        if bias is None or bias.dtype == x.dtype:
            return _product(self, x, bias)
        return _product(self, x) + bias


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """:class:`mlx.nn.QuantizedEmbedding` on our kernels."""

    _activations: str | None = None
    _batch_invariant: bool = False
    _tuning: int = 0
    # What rows are looked up as, if not in the type of the scales.
    _row_dtype: mx.Dtype | None = None

    def __call__(self, x: mx.array) -> mx.array:
        """Return the rows of ``w_hat`` that ``x`` names, ``[..., dims]``."""
        biases = self.get("biases")
        return ops.dequantize(
            self["weight"][x],
            self["scales"][x],
            biases[x] if biases is not None else None,
            self.group_size,
            self.bits,
            self.mode,
            dtype=self._row_dtype,
        )

    def as_linear(self, x: mx.array) -> mx.array:
        """Return ``x @ w_hat.T``: the output projection of tied weights."""
        return _product(self, x)


def with_settings(
    kind: type[nn.Module],
    activations: str | None,
    batch_invariant: bool,
    tuning: int = 0,
) -> type[nn.Module]:
    """A layer's class with other settings than the defaults, or the class itself."""
    settings = {
        "_activations": activations,
        "_batch_invariant": batch_invariant,
        "_tuning": tuning,
    }
    if all(getattr(kind, name) == value for name, value in settings.items()):
        return kind
    described = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__reduce_ex__": pickled_as(kind.__bases__[0]),
    }
    return type(kind.__name__, (kind,), described | settings)

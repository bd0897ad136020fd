"""Layers that compute with our kernels.

Subclasses of MLX's with the same parameters, so that saving, loading, LoRA,
sharding and every ``isinstance`` go on working. What :func:`accelerate` sets on a
layer is kept in attributes that begin with an underscore, which MLX neither saves
nor counts as parameters.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble import ops


def _product(layer: Any, x: mx.array) -> mx.array:
    """``x @ w_hat.T`` with a quantized layer's weights and settings."""
    return ops.quantized_matmul(
        x,
        layer["weight"],
        layer["scales"],
        layer.get("biases"),
        True,
        layer.group_size,
        layer.bits,
        layer.mode,
        activations=layer._activations,
        batch_invariant=layer._batch_invariant,
    )


class QuantizedLinear(nn.QuantizedLinear):
    """:class:`mlx.nn.QuantizedLinear` on our kernels."""

    _activations: str | None = None
    _batch_invariant: bool = False

    def __call__(self, x: mx.array) -> mx.array:
        """Return ``x @ w_hat.T + bias``, ``[..., output_dims]``."""
        y = _product(self, x)
        if "bias" in self:
            y = y + self["bias"]
        return y


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """:class:`mlx.nn.QuantizedEmbedding` on our kernels."""

    _activations: str | None = None
    _batch_invariant: bool = False

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
        )

    def as_linear(self, x: mx.array) -> mx.array:
        """Return ``x @ w_hat.T``: the output projection of tied weights."""
        return _product(self, x)

"""Layers that compute with our kernels.

Subclasses of MLX's with the same parameters, so that saving, loading, LoRA,
sharding and every ``isinstance`` go on working.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble import ops


class QuantizedLinear(nn.QuantizedLinear):
    """:class:`mlx.nn.QuantizedLinear` on our kernels."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return ``x @ w_hat.T + bias``, ``[..., output_dims]``."""
        y = ops.quantized_matmul(
            x,
            self["weight"],
            self["scales"],
            self.get("biases"),
            True,
            self.group_size,
            self.bits,
            self.mode,
        )
        if "bias" in self:
            y = y + self["bias"]
        return y


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """:class:`mlx.nn.QuantizedEmbedding` on our kernels."""

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
        return ops.quantized_matmul(
            x,
            self["weight"],
            self["scales"],
            self.get("biases"),
            True,
            self.group_size,
            self.bits,
            self.mode,
        )

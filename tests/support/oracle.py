"""The one oracle: quantized products in float64, by the definition.

It uses neither MLX nor our kernels. Everything is numpy; a bfloat16
array travels as float32 (each bfloat16 is exactly one float32).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the codes [..., K] of packed words [..., K * bits / 32].

    A row is a little-endian bit stream: code k is bits [k * bits, (k + 1) * bits).
    """
    stream = np.unpackbits(
        np.ascontiguousarray(words, dtype="<u4").view(np.uint8),
        axis=-1,
        bitorder="little",
    )
    fields = stream.reshape(*stream.shape[:-1], -1, bits).astype(np.int64)
    return (fields << np.arange(bits)).sum(-1)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return uint32 words of codes [..., K]: the inverse of :func:`unpack`."""
    fields = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    stream = fields.astype(np.uint8).reshape(*codes.shape[:-1], -1)
    return np.packbits(stream, axis=-1, bitorder="little").view("<u4")


@dataclass(frozen=True)
class Weights:
    """A quantized matrix [..., N, K]: its arrays and its dequantized value."""

    words: np.ndarray  # uint32 [..., N, K * bits / 32]
    scales: np.ndarray  # float [..., N, K / group_size]
    biases: np.ndarray  # float [..., N, K / group_size]
    bits: int
    group_size: int

    def _spread(self, per_group: np.ndarray) -> np.ndarray:
        return np.repeat(per_group.astype(np.float64), self.group_size, axis=-1)

    def dequantize(self) -> np.ndarray:
        """w_hat = scale * code + bias, float64 [..., N, K]."""
        codes = unpack(self.words, self.bits)
        return self._spread(self.scales) * codes + self._spread(self.biases)

    def magnitude(self) -> np.ndarray:
        """|scale| * code + |bias|, the magnitude of the rounding errors of w_hat.

        |w_hat| would be too small: where scale * code and bias nearly cancel, an
        algorithm that sums them separately keeps the errors of both.
        """
        codes = unpack(self.words, self.bits)
        return self._spread(abs(self.scales)) * codes + self._spread(abs(self.biases))


def matmul(x: np.ndarray, w: np.ndarray, transpose: bool = True) -> np.ndarray:
    """Return x @ w.T (or x @ w) in float64, with numpy's broadcasting of batches."""
    w = w.astype(np.float64)
    return x.astype(np.float64) @ (w.swapaxes(-1, -2) if transpose else w)


def random_weights(
    rng: np.random.Generator, shape: tuple[int, ...], bits: int, group_size: int
) -> Weights:
    """Return weights [..., N, K] with all codes possible and scales of both signs."""
    codes = rng.integers(0, 2**bits, size=shape)
    groups = (*shape[:-1], shape[-1] // group_size)
    scales = rng.uniform(0.5, 1.5, groups) * rng.choice([-1, 1], groups)
    scales = (scales / 2**bits).astype(np.float16)
    biases = (-scales * rng.uniform(0, 2**bits, groups)).astype(np.float16)
    return Weights(pack(codes, bits), scales, biases, bits, group_size)

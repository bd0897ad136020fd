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


def _e2m1(codes: np.ndarray) -> np.ndarray:
    """Value of sign, 2 bits of exponent (bias 1), 1 bit of mantissa."""
    exponent, mantissa = codes >> 1 & 3, codes & 1
    magnitude = np.where(
        exponent == 0, mantissa / 2, (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    )
    return np.where(codes & 8, -magnitude, magnitude)


def _e4m3(codes: np.ndarray) -> np.ndarray:
    """Value of sign, 4 bits of exponent (bias 7), 3 of mantissa; 1111.111 is NaN."""
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(
        exponent == 0, mantissa / 512, (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    )
    magnitude = np.where(codes & 127 == 127, np.nan, magnitude)
    return np.where(codes & 128, -magnitude, magnitude)


def _e8m0(codes: np.ndarray) -> np.ndarray:
    """Power of two of an exponent (bias 127); 255 is infinite in MLX."""
    return np.where(codes == 255, np.inf, 2.0 ** (codes.astype(np.float64) - 127))


FLOAT_MODES = {
    "mxfp4": (4, 32, _e2m1, _e8m0),
    "nvfp4": (4, 16, _e2m1, _e4m3),
    "mxfp8": (8, 32, _e4m3, _e8m0),
}
"""Bits, group size, value of a code and value of a scale, by mode."""


@dataclass(frozen=True)
class FloatWeights:
    """A matrix [..., N, K] in a mode of floats: its arrays and its value."""

    words: np.ndarray  # uint32 [..., N, K * bits / 32]
    scales: np.ndarray  # uint8 [..., N, K / group_size]
    mode: str

    @property
    def bits(self) -> int:
        """Width of a code."""
        return FLOAT_MODES[self.mode][0]

    @property
    def group_size(self) -> int:
        """Codes that share a scale."""
        return FLOAT_MODES[self.mode][1]

    def dequantize(self) -> np.ndarray:
        """w_hat = scale * code, float64 [..., N, K]."""
        bits, group_size, value, scale = FLOAT_MODES[self.mode]
        scales = np.repeat(scale(self.scales.astype(np.int64)), group_size, axis=-1)
        with np.errstate(invalid="ignore"):
            return scales * value(unpack(self.words, bits))

    def magnitude(self) -> np.ndarray:
        """|w_hat|: there is no bias that could cancel it."""
        return abs(self.dequantize())

    def reach(self) -> np.ndarray:
        """Return the largest |w_hat| that each group can have."""
        _, _, value, scale = FLOAT_MODES[self.mode]
        largest = np.nanmax(abs(value(np.arange(2**self.bits))))
        return abs(scale(self.scales.astype(np.int64))) * largest


def random_floats(
    rng: np.random.Generator, shape: tuple[int, ...], mode: str
) -> FloatWeights:
    """Return weights [..., N, K] of at most 2, with all finite codes."""
    bits, group_size, value, scale = FLOAT_MODES[mode]
    finite = np.flatnonzero(np.isfinite(value(np.arange(2**bits))))
    sizes = abs(scale(np.arange(256))) * abs(value(finite)).max()
    near = np.flatnonzero((sizes >= 2**-6) & (sizes <= 2))
    codes = rng.choice(finite, shape)
    scales = rng.choice(near, (*shape[:-1], shape[-1] // group_size))
    return FloatWeights(pack(codes, bits), scales.astype(np.uint8), mode)


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

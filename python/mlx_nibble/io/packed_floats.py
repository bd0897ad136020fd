r"""Other tools' matrices of floats: those that MLX's modes hold, and values alone.

A code is an E2M1 or E4M3 number, with a scale for each group, row, block or matrix.
MLX's modes hold such a matrix if their groups and scales do. Other matrices, and those
of tables of 16 values, are values that get the nearest form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_nibble.floats import CODES, E4M3, SCALES
from mlx_nibble.formats import MODES, Format, grouped, unpack

_E4M3_NAN, _E8M0_LAST, _BIAS = 127, 254, 127


@dataclass(frozen=True)
class Floats:
    """A matrix of one of MLX's modes of floats, times a factor.

    Attributes:
        mode: The mode.
        words: Packed codes, uint32 `[..., N, K * bits / 32]`.
        scales: Scales, uint8 `[..., N, K / g]`.
        factor: The factor of all values.
    """

    mode: str
    words: np.ndarray
    scales: np.ndarray
    factor: float = 1.0

    @property
    def bits(self) -> int:
        """Width of a code."""
        return MODES[self.mode].default_bits

    @property
    def form(self) -> Format:
        """The format of the matrix."""
        return Format.of_mode(self.mode)

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.words.size * 32 // self.bits

    def values(self) -> np.ndarray:
        """Return the values, rounded once to float32, `[..., N, K]`."""
        codes = CODES[self.mode][unpack(self.words, self.bits)]
        scales = SCALES[self.mode][self.scales].astype(np.float64) * self.factor
        wide = grouped(codes, self.form.group_size) * scales[..., None]
        return wide.astype(np.float32).reshape(codes.shape)

    def folded(self) -> Floats | None:
        """Return the same matrix without a factor; None if a scale cannot hold it."""
        if self.factor == 1.0:
            return self
        scaled = E4M3[self.scales].astype(np.float64) * self.factor
        magnitudes = E4M3[:_E4M3_NAN].astype(np.float64)
        found = np.searchsorted(magnitudes, abs(scaled)).clip(max=_E4M3_NAN - 1)
        if self.mode != "nvfp4" or (magnitudes[found] != abs(scaled)).any():
            return None
        signs = self.scales & np.uint8(0x80)
        return Floats(self.mode, self.words, found.astype(np.uint8) | signs)


@dataclass(frozen=True)
class Values:
    """A matrix that no form of MLX holds exactly.

    Attributes:
        kind: Name of its row in the table of nearest forms, such as "fp8".
        values: Its values, float32 `[N, K]`.
    """

    kind: str
    values: np.ndarray


@dataclass(frozen=True)
class Table:
    """A matrix of levels, times a scale for each block of its joined rows.

    Attributes:
        kind: Name of the table: "nf4" or "fp4".
        codes: Number of the level of each weight, uint8 `[N, K]`.
        levels: The levels, float32.
        scales: One for each block, float32.
        size: Weights of a block; the last block may be shorter.
    """

    kind: str
    codes: np.ndarray
    levels: np.ndarray
    scales: np.ndarray
    size: int

    @property
    def values(self) -> np.ndarray:
        """The values, float32 `[N, K]`."""
        wide = np.repeat(self.scales, self.size)[: self.codes.size]
        return self.levels[self.codes] * wide.reshape(self.codes.shape)


def e2m1(mode: str, octets: np.ndarray, scales: np.ndarray, factor: float) -> Floats:
    """Return a matrix of pairs of E2M1 codes, the first one in the low half.

    Args:
        mode: "mxfp4" or "nvfp4".
        octets: uint8 `[N, K / 2]`.
        scales: uint8 `[N, K / g]`, E8M0 or E4M3.
        factor: The factor of all values.

    Raises:
        ValueError: If shapes do not fit, or a scale is no number. The message lacks
            the name of the matrix.
    """
    size = MODES[mode].default_group_size
    rows, inputs = len(octets), 2 * octets.shape[1]
    if inputs % size or scales.shape != (rows, inputs // size):
        raise ValueError(
            f"must have scales of groups of {size} of {rows} x {inputs} weights but "
            f"has {scales.shape}"
        )
    if not np.isfinite(SCALES[mode][scales]).all() or not np.isfinite(factor):
        raise ValueError("must have finite scales but some are not")
    return Floats(mode, np.ascontiguousarray(octets).view("<u4"), scales, factor)


def e4m3(codes: np.ndarray, scales: np.ndarray, size: int) -> Floats | Values:
    """Return a matrix of E4M3 codes: exact if all scales are powers of two.

    Args:
        codes: uint8 `[N, K]`.
        scales: float32 `[N, G]`.
        size: Inputs of a group; the last group may be shorter.

    Raises:
        ValueError: If a code or a scale is no number. The message lacks the name.
    """
    inputs, group = codes.shape[1], MODES["mxfp8"].default_group_size
    if ((codes & 0x7F) == _E4M3_NAN).any() or not np.isfinite(scales).all():
        raise ValueError("must have finite values but some are not")
    mantissas, exponents = np.frexp(scales)
    exponents = exponents - 1 + _BIAS
    exact = (mantissas == 0.5).all() and not inputs % group
    exact = exact and (size % group == 0 or scales.shape[1] == 1)
    if exact and exponents.min() >= 0 and exponents.max() <= _E8M0_LAST:
        wide = np.repeat(exponents.astype(np.uint8), -(-size // group), 1)
        words = np.ascontiguousarray(codes).view("<u4")
        return Floats("mxfp8", words, wide[:, : inputs // group])
    wide = np.repeat(scales, size, 1)[:, :inputs]
    return Values("fp8", E4M3[codes] * wide)

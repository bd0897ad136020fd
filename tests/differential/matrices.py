"""Random quantized matrices, and the exact value and bound of a product with them.

The exact value is the product, in float64, of the matrix that MLX's `dequantize` gives
in float32. Two roundings of each element of that matrix are added to the bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_nibble import numerics
from mlx_nibble.formats import GROUP_SIZES, SUPPORTED_BITS
from tests.differential.draw import Draw
from tests.support import tolerance
from tests.support.arrays import DTYPES, to_numpy

UNIT = numerics.UNIT_ROUNDOFF["float32"]


@dataclass(frozen=True)
class Matrix:
    """Quantized matrices [..., N, K] and their values in float64."""

    arrays: tuple[mx.array, mx.array, mx.array]
    w_hat: np.ndarray
    magnitude: np.ndarray  # |scale| code + |bias|


@dataclass(frozen=True)
class Format:
    """The format of a case's matrices, and the type of scales and biases."""

    bits: int
    group_size: int
    scale_dtype: str
    symmetric: bool

    @staticmethod
    def of(d: Draw) -> Format:
        bits, group_size = d.pick("bits", *SUPPORTED_BITS), d.pick("gs", *GROUP_SIZES)
        return Format(bits, group_size, d.dtype("scales"), d.chance("symmetric", 0.2))

    def matrix(self, d: Draw, shape: tuple[int, ...]) -> Matrix:
        """Return random matrices [..., N, K]."""
        *lead, K = shape
        words = d.rng.integers(0, 2**32, (*lead, K * self.bits // 32), dtype=np.uint32)
        groups = (*lead, K // self.group_size)
        scales = d.rng.standard_normal(groups) * 2.0**-self.bits
        scales = to_numpy(mx.array(scales.astype(np.float32)).astype(self.type))
        biases = -scales * d.rng.uniform(0, 2**self.bits, groups)
        if self.symmetric:
            biases = -scales * 2.0 ** (self.bits - 1)
        w = d.laid_out("w as", words, mx.uint32)
        s = d.laid_out("scales as", scales, self.type)
        b = d.laid_out("biases as", biases.astype(np.float32), self.type)
        if d.chance("shared scales", 0.05) and len(lead) > 1 and lead[0] > 0:
            s, b = (mx.broadcast_to(a[:1], a.shape) for a in (s, b))
        form = (self.group_size, self.bits)
        if 0 in lead:
            return Matrix((w, s, b), np.zeros(shape), np.zeros(shape))
        s32, b32 = (mx.contiguous(a).astype(mx.float32) for a in (s, b))
        plain = mx.contiguous(w)
        # MLX's kernels for CUDA leave matrices of 1 bit unwritten.
        with mx.stream(mx.cpu):
            w_hat = mx.dequantize(plain, s32, b32, *form)
            magnitude = mx.dequantize(plain, abs(s32), abs(b32), *form)
        w_hat, magnitude = (np.array(a).astype(np.float64) for a in (w_hat, magnitude))
        return Matrix((w, s, b), w_hat, magnitude)

    @property
    def type(self) -> mx.Dtype:
        return DTYPES[self.scale_dtype]


@dataclass(frozen=True)
class Product:
    """x times matrices: the exact result and its bound before the one rounding."""

    exact: np.ndarray
    off: np.ndarray

    @staticmethod
    def of(
        x: np.ndarray,
        w_hat: np.ndarray,
        magnitude: np.ndarray,
        transpose: bool = True,
        rounding: tuple[int, str] = (1, "exact"),
        addends: tuple[np.ndarray, ...] = (),
        weight_dtype: str = "float32",
    ) -> Product:
        x = x.astype(np.float64)
        if transpose:
            columns, sizes = w_hat.swapaxes(-1, -2), magnitude.swapaxes(-1, -2)
        else:
            columns, sizes = w_hat, magnitude
        exact, A = x @ columns, abs(x) @ sizes
        terms = x.shape[-1] + 2
        off = numerics.of_sum(A + sum(map(abs, addends)), terms, weight_dtype)
        off = off + 2 * UNIT * A
        exact = exact + sum(addends)
        if transpose and x.size and w_hat.size:
            off = off + tolerance.integer_bound(x, w_hat, *rounding)
        return Product(exact, off)

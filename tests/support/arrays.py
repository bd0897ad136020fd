"""Between numpy, which the oracle speaks, and MLX."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from tests.support.oracle import Weights

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def to_mlx(a: np.ndarray, dtype: str) -> mx.array:
    """An MLX array of ``dtype``, rounded there if need be."""
    return mx.array(a.astype(np.float32)).astype(DTYPES[dtype])


def to_numpy(a: mx.array) -> np.ndarray:
    """Exact for every type of ours: a bfloat16 is a float32."""
    return np.array(a.astype(mx.float32))


def weights_to_mlx(
    w: Weights, scale_dtype: str
) -> tuple[tuple[mx.array, mx.array, mx.array], Weights]:
    """The arrays MLX takes, and the oracle's weights after rounding to them."""
    scales, biases = to_mlx(w.scales, scale_dtype), to_mlx(w.biases, scale_dtype)
    rounded = Weights(w.words, to_numpy(scales), to_numpy(biases), w.bits, w.group_size)
    return (mx.array(w.words), scales, biases), rounded

"""Converts arrays between numpy, which the oracle uses, and MLX."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from tests.support.oracle import Weights

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def to_mlx(a: np.ndarray, dtype: str) -> mx.array:
    """Return an MLX array of type ``dtype``, rounded if necessary."""
    return mx.array(a.astype(np.float32)).astype(DTYPES[dtype])


def to_numpy(a: mx.array) -> np.ndarray:
    """Return a numpy array of the same values; a bfloat16 becomes a float32."""
    return np.array(a.astype(mx.float32))


def weights_to_mlx(
    w: Weights, scale_dtype: str
) -> tuple[tuple[mx.array, mx.array, mx.array], Weights]:
    """Return MLX's arrays, and the oracle's weights rounded to their types."""
    scales, biases = to_mlx(w.scales, scale_dtype), to_mlx(w.biases, scale_dtype)
    rounded = Weights(w.words, to_numpy(scales), to_numpy(biases), w.bits, w.group_size)
    return (mx.array(w.words), scales, biases), rounded

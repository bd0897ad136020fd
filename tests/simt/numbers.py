"""Converts values to bits and back: numpy has no bfloat16, the oracle uses floats."""

from __future__ import annotations

import numpy as np

STORAGE = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    # Scales that are floats of 8 bits stay bytes.
    "e8m0": np.dtype(np.uint8),
    "e4m3": np.dtype(np.uint8),
}
# By the short names in those of kernels. Types of bytes have only these.
LONG = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
LONG |= {"e8m0": "e8m0", "e4m3": "e4m3"}
SHORT = {long: short for short, long in LONG.items()}


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round values to `dtype`, in an array that a kernel reads."""
    if dtype != "bfloat16":
        return values.astype(STORAGE[dtype])
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return (rounded >> 16).astype(np.uint16)


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Return the values of an array that a kernel wrote: float32 for bfloat16."""
    if dtype != "bfloat16":
        return stored
    return (stored.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the nearest values of `dtype`."""
    return decode(encode(values, dtype), dtype)

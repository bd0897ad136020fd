"""Random choices of a case, and arrays in every layout."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from tests.support.arrays import DTYPES

SPECIAL = (np.nan, np.inf, -np.inf, -0.0, 1e-40)


class Draw:
    """The choices of one case; the same for the same seed and index."""

    def __init__(self, seed: int, index: int) -> None:
        self.rng = np.random.default_rng([seed, index])
        self.notes: dict[str, Any] = {}

    def pick(self, name: str, *options: Any) -> Any:
        """Return one of the options, and note it under ``name``."""
        value = options[self.rng.integers(len(options))]
        self.notes[name] = value
        return value

    def chance(self, name: str, probability: float) -> bool:
        """Return true with a probability, and note it if so."""
        happens = self.rng.random() < probability
        if happens:
            self.notes[name] = True
        return happens

    def size(self, name: str, most: int) -> int:
        """Return a size from 1 to ``most``, mostly small."""
        size = 1 + int(self.rng.random() ** 2 * most)
        self.notes[name] = size
        return size

    def dtype(self, name: str = "dtype") -> str:
        return self.pick(name, *DTYPES)

    def lead(self, name: str, most: int = 2) -> tuple[int, ...]:
        """Return batch dimensions."""
        count = self.rng.integers(most + 1)
        shape = tuple(int(n) for n in self.rng.integers(1, 4, count))
        self.notes[name] = shape
        return shape

    def numbers(self, shape: tuple[int, ...], spread: bool = True) -> np.ndarray:
        """Return random numbers, at times of unusual size, or not finite."""
        a = self.rng.standard_normal(shape).astype(np.float32)
        if not spread or a.size == 0:
            return a
        kind = self.rng.random()
        if kind < 0.15:
            a *= np.exp(2 * self.rng.standard_normal(shape)).astype(np.float32)
        elif kind < 0.25:
            a *= np.float32(2.0 ** self.rng.integers(-14, 10))
        elif kind < 0.3:
            a[self.rng.random(shape) < 0.7] = 0
        elif kind < 0.4:
            for _ in range(self.rng.integers(1, 4)):
                at = tuple(int(self.rng.integers(n)) for n in shape)
                a[at] = SPECIAL[self.rng.integers(len(SPECIAL))]
            self.notes["special"] = True
        return a

    def laid_out(self, name: str, a: np.ndarray, dtype: mx.Dtype) -> mx.array:
        """Return an array of these values, rounded, as one of many views."""
        whole = mx.array(a).astype(dtype)
        if a.ndim == 0 or a.size == 0:
            return whole
        options = ["own", "own", "slice", "step", "reversed", "swapped", "pending"]
        how = self.pick(name, *options)
        axis = int(self.rng.integers(a.ndim))
        at = [slice(None)] * a.ndim
        if how == "slice":
            width = [(1, 2) if i == axis else (0, 0) for i in range(a.ndim)]
            at[axis] = slice(1, 1 + a.shape[axis])
            return mx.array(np.pad(a, width)).astype(dtype)[tuple(at)]
        if how == "step":
            at[axis] = slice(None, None, 3)
            return mx.repeat(whole, 3, axis=axis)[tuple(at)]
        if how == "reversed":
            at[axis] = slice(None, None, -1)
            return mx.array(np.flip(a, axis).copy()).astype(dtype)[tuple(at)]
        if how == "swapped" and a.ndim > 1:
            other = (axis + 1) % a.ndim
            swapped = np.ascontiguousarray(a.swapaxes(axis, other))
            return mx.array(swapped).astype(dtype).swapaxes(axis, other)
        return whole.reshape(-1).reshape(a.shape) if how == "pending" else whole

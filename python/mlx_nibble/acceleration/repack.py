"""Copies of the weights, in the order in which the processor reads them fastest.

On a CPU, products of few rows read a copy faster: it is one stream of memory in the
order of the instruction set (docs/internals/cpu.md). Results have the same bits. The
first product of a layer makes the copy. It takes as much memory as the layer's weights,
and is never written to disk. Formats of 2, 4 and 8 bits have copies; products read
other formats from the layer's arrays.

A copy belongs to three array objects. An array that replaces one of them, or that was
written to, is another object and has no copy. The copy is freed with the first of the
three arrays. :mod:`mlx_nibble.acceleration.symmetric` follows the same rule.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import mlx.core as mx

from mlx_nibble import _native

Matrix = tuple[mx.array, mx.array, mx.array, int, int]
"""w, scales, biases, bits and group size."""


class Copies:
    """The copies of a model's layers, including those that are not made yet."""

    def __init__(self, matrices: Iterable[Matrix]) -> None:
        """Let products with these matrices use copies from now on."""
        self._watched: list[weakref.finalize] = []
        self._tokens: list[int] = []
        try:
            for matrix in matrices:
                self._remember(*matrix)
        except BaseException:
            self.forget()
            raise

    def _remember(
        self, w: mx.array, scales: mx.array, biases: mx.array, bits: int, group: int
    ) -> None:
        ext = _native.ext
        token = ext.remember_repack(w, scales, biases, bits, group) if ext else 0
        if ext is None or token == 0:
            return
        self._tokens.append(token)
        for array in (w, scales, biases):
            watch = weakref.finalize(array, ext.forget_repack, token)
            watch.atexit = False
            self._watched.append(watch)

    def forget(self) -> None:
        """Free all copies; products read the layers' own arrays again."""
        for watch in self._watched:
            watch()
        self._watched, self._tokens = [], []

    @property
    def nbytes(self) -> int:
        """Bytes of all copies, when each layer has computed a product."""
        return sum(self._bytes(0))

    @property
    def nbytes_so_far(self) -> int:
        """Bytes of the copies that are made."""
        return sum(self._bytes(1))

    def _bytes(self, which: int) -> Iterable[int]:
        ext = _native.ext
        return [ext.repack_bytes(t)[which] for t in self._tokens] if ext else []

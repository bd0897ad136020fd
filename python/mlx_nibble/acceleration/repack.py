"""Weights in the order in which the processor reads them fastest.

On a CPU, products of few rows are faster if the weights lie in the order of the
instruction set (docs/internals/cpu.md). That order is a permutation of the same bits.
A layer gets lazy arrays in the place of its own. Our products read the packed weights
behind them, with the same bits. Everything else may use the lazy arrays like any
others: an evaluation unpacks them.

An array that was evaluated has no packed weights any more. Once all arrays of a layer
were evaluated, the packed weights are freed, and products read the arrays as they lie.
So a layer never keeps its weights twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble import _native
from mlx_nibble.progress import Progress, silent

NAMES = ("weight", "scales", "biases")
"""A quantized layer's arrays."""

Matrix = tuple[mx.array, mx.array, mx.array | None]
"""w, scales, and biases if the mode has them."""


class Repacked:
    """The layers of a model whose weights lie in the processor's order."""

    def __init__(self) -> None:
        """Begin without layers."""
        self._layers: list[tuple[Any, int]] = []

    def add(self, modules: Iterable[nn.Module], progress: Progress = silent) -> None:
        """Repack quantized layers, one after the other.

        Args:
            modules: Quantized layers. Those that the backend has no other order for
                stay as they are.
            progress: Function that is told the number of layers.
        """
        found: dict[int, Any] = {id(m): m for m in modules}
        layers = [m for m in found.values() if not any(map(is_packed, _arrays(m)))]
        shared = _shared(layers)
        done: dict[tuple[int, ...], tuple[Matrix, int]] = {}
        memory = _memory(layers)
        for number, layer in enumerate(layers):
            progress("repack weights", number, len(layers))
            key = _identity(layer)
            packed = done.get(key) or pack(
                *_arrays(layer), layer.bits, layer.group_size, _mode(layer), memory
            )
            if packed is None:
                continue
            if key in shared:
                done[key] = packed
            matrix, nbytes = packed
            self._layers.append((layer, nbytes))
            for name, array in zip(NAMES, matrix, strict=True):
                if array is not None:
                    layer[name] = array
        progress("repack weights", len(layers), len(layers))
        if self._layers and _native.ext is not None:
            _native.ext.release_memory()

    def undo(self) -> None:
        """Give all layers evaluated arrays, as they had before."""
        for layer, _ in self._layers:
            mx.eval([a for a in map(layer.get, NAMES) if is_packed(a)])
        self._layers = []

    @property
    def layers(self) -> int:
        """Number of the layers that are repacked now."""
        return sum(is_packed(layer["weight"]) for layer, _ in self._layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the repacked weights, which replace those of the checkpoint."""
        return sum(n for layer, n in self._layers if is_packed(layer["weight"]))


def pack(
    w: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    bits: int,
    group_size: int,
    mode: str = "affine",
    memory: Any = None,
) -> tuple[Matrix, int] | None:
    """Return lazy arrays that replace a matrix, and the bytes of the packed weights.

    None if the backend has no other order for it. The bytes come from the extension's
    `memory`, or are allocated.
    """
    ext = _native.ext
    if ext is None:
        return None
    matrix, form = (w, scales, biases), (bits, group_size, mode)
    memory = memory or ext.PackedMemory(ext.packed_bytes(matrix, *form))
    packed = ext.pack(matrix, *form, memory)
    if packed is None:
        return None
    lazy_w, lazy_scales, lazy_biases, nbytes = packed
    if lazy_biases is not None or biases is None:
        return (lazy_w, lazy_scales, lazy_biases), nbytes
    # A symmetric matrix. Its biases stay, and are now known to follow from the new
    # scales.
    ext.remember_symmetric(lazy_scales, biases, bits)
    return (lazy_w, lazy_scales, biases), nbytes


def is_packed(array: Any) -> bool:
    """Return whether an array would be unpacked by an evaluation."""
    return (
        _native.ext is not None
        and isinstance(array, mx.array)
        and _native.ext.is_packed(array)
    )


def _arrays(layer: Any) -> Matrix:
    return layer["weight"], layer["scales"], layer.get("biases")


def _memory(layers: list[Any]) -> Any:
    """Return memory for the packed weights of layers that may share arrays."""
    if _native.ext is None:
        return None
    sizes = {
        _identity(m): _native.ext.packed_bytes(
            _arrays(m), m.bits, m.group_size, _mode(m)
        )
        for m in layers
    }
    return _native.ext.PackedMemory(sum(sizes.values()))


def _mode(layer: Any) -> str:
    return getattr(layer, "mode", "affine")


def _identity(layer: Any) -> tuple[int, ...]:
    return tuple(map(id, _arrays(layer)))


def _shared(layers: list[Any]) -> set[tuple[int, ...]]:
    """Return the identities of the arrays that several layers have."""
    seen: set[tuple[int, ...]] = set()
    return {key for key in map(_identity, layers) if key in seen or seen.add(key)}

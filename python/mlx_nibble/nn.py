"""Layers that compute with our kernels.

They are subclasses of MLX's layers with the same parameters: saving, loading, LoRA,
sharding and every ``isinstance`` work as before. Options belong to the class, so a
layer has the same attributes as MLX's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble import _native, ops
from mlx_nibble._arguments import activation_bits
from mlx_nibble._pickling import pickled_as


@dataclass(frozen=True)
class Options:
    """Arguments of :func:`mlx_nibble.ops.quantized_matmul` in all calls of a layer."""

    activations: str | None = None
    batch_invariant: bool = False
    tuning: int = 0


def _native_options(options: Options) -> Any:
    """Return the options as the extension takes them; None without an extension."""
    rounded = activation_bits("quantized_matmul", options.activations)
    if _native.ext is None:
        return None
    return _native.ext.MatmulOptions(rounded, options.batch_invariant, options.tuning)


def _by_mlx(layer: Any, x: mx.array) -> mx.array:
    """Return ``x @ w_hat.T + bias`` where there is no extension."""
    matrix = (layer["weight"], layer["scales"], layer.get("biases"))
    form = (layer.group_size, layer.bits, layer.mode)
    y = ops.quantized_matmul(x, *matrix, True, *form)
    return y + layer["bias"] if "bias" in layer else y


def _rows(array: mx.array, x: mx.array) -> mx.array:
    """Return ``array[x]``, without unpacking an array of repacked weights."""
    ext = _native.ext
    rows = ext.packed_rows(array, x) if ext and isinstance(x, mx.array) else None
    return array[x] if rows is None else rows


def _require_groups(op: str, group_size: int | None) -> None:
    """Check a group size: a division by 0 inside MLX ends the process."""
    if group_size is not None and group_size < 1:
        raise ValueError(f"[{op}] group_size must be positive but got {group_size}.")


class QuantizedLinear(nn.QuantizedLinear):
    """:class:`mlx.nn.QuantizedLinear` on our kernels."""

    _options = Options()
    _as_native: ClassVar[Any] = _native_options(Options())

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        bias: bool = True,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
    ):
        """Make random weights.

        Raises:
            ValueError: If MLX has no such format.
        """
        _require_groups("QuantizedLinear", group_size)
        super().__init__(input_dims, output_dims, bias, group_size, bits, mode)  # type: ignore[arg-type]

    def __call__(self, x: mx.array) -> mx.array:
        """Return ``x @ w_hat.T + bias``, ``[..., output_dims]``."""
        if _native.ext is None:
            return _by_mlx(self, x)
        # One call, which reads the layer. Passing each array takes longer.
        return _native.ext.linear(self, x, self._as_native)


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """:class:`mlx.nn.QuantizedEmbedding` on our kernels."""

    _options = Options()
    _as_native: ClassVar[Any] = _native_options(Options())
    # Type of looked-up rows; None for the type of the scales. It is a name, for MLX's
    # types can be neither copied nor pickled.
    _row_dtype: str | None = None

    def __init__(
        self,
        num_embeddings: int,
        dims: int,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
    ):
        """Make random weights.

        Raises:
            ValueError: If MLX has no such format.
        """
        _require_groups("QuantizedEmbedding", group_size)
        super().__init__(num_embeddings, dims, group_size, bits, mode)  # type: ignore[arg-type]

    def __call__(self, x: mx.array) -> mx.array:
        """Return the rows of ``w_hat`` that ``x`` names, ``[..., dims]``."""
        biases = self.get("biases")
        return ops.dequantize(
            _rows(self["weight"], x),
            _rows(self["scales"], x),
            _rows(biases, x) if biases is not None else None,
            self.group_size,
            self.bits,
            self.mode,
            dtype=getattr(mx, self._row_dtype) if self._row_dtype else None,
            tuning=self._options.tuning,
        )

    def as_linear(self, x: mx.array) -> mx.array:
        """Return ``x @ w_hat.T``: the output projection of tied weights."""
        if _native.ext is None:
            return _by_mlx(self, x)
        return _native.ext.linear(self, x, self._as_native)


def with_options(kind: type[nn.Module], options: Options) -> type[nn.Module]:
    """Return the subclass of a layer's class with these options.

    The result is ``kind`` itself if it has these options already.
    """
    if getattr(kind, "_options", None) == options:
        return kind
    described = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__reduce_ex__": pickled_as(kind.__bases__[0]),
        "_options": options,
        "_as_native": _native_options(options),
    }
    return type(kind.__name__, (kind,), described)

"""The layouts of packed checkpoints: a new quantization method is a row of a table.

A layout names the tensors of a matrix and reads them. It is made from, and checks, the
`quantization_config` of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.formats import Quantized
from mlx_nibble.io.packed import from_awq, from_compressed_tensors, from_gptq

_PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Parts:
    """The tensors of one packed matrix.

    Attributes:
        tensors: All tensors of the checkpoint.
        path: Path of the matrix.
    """

    tensors: Mapping[str, mx.array]
    path: str

    def get(self, name: str) -> np.ndarray | None:
        """Return a tensor, floating types as float32; None if it is absent."""
        tensor = self.tensors.get(f"{self.path}.{name}")
        if tensor is None:
            return None
        if mx.issubdtype(tensor.dtype, mx.floating):
            tensor = tensor.astype(mx.float32)
        return np.array(tensor)

    def need(self, name: str) -> np.ndarray:
        """Return a tensor, floating types as float32.

        Raises:
            ValueError: If it is absent.
        """
        part = self.get(name)
        if part is None:
            raise ValueError(f"[import] {self.path}.{name} is required but missing.")
        return part


@dataclass(frozen=True)
class Layout:
    """How a checkpoint stores a matrix.

    Attributes:
        codes: Name of the tensor of codes.
        scales: Name of the tensor of scales.
        parts: Names of all tensors of a matrix.
        read: Function from the parts and the type of biases to the weight and the
            order of its inputs, see :mod:`mlx_nibble.io.packed`.
    """

    codes: str
    scales: str
    parts: tuple[str, ...]
    read: Callable[[Parts, str], tuple[Quantized, np.ndarray | None]]


def _awq(settings: Mapping[str, Any]) -> Layout:
    if settings.get("version", "gemm") != "gemm" or settings.get("bits", 4) != 4:
        raise ValueError(
            "[import] an AWQ checkpoint must be of version gemm and 4 bits but "
            f"is of {settings.get('version')} and {settings.get('bits')}."
        )

    def read(parts: Parts, dtype: str) -> tuple[Quantized, None]:
        codes, zeros = parts.need("qweight"), parts.need("qzeros")
        return from_awq(codes, zeros, parts.need("scales"), dtype), None

    return Layout("qweight", "scales", _PARTS, read)


def _gptq(settings: Mapping[str, Any]) -> Layout:
    bits = int(settings["bits"])
    zero_offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1

    def read(parts: Parts, dtype: str) -> tuple[Quantized, np.ndarray | None]:
        return from_gptq(
            parts.need("qweight"),
            parts.need("qzeros"),
            parts.need("scales"),
            parts.get("g_idx"),
            bits,
            dtype,
            zero_offset=zero_offset,
        )

    return Layout("qweight", "scales", _PARTS, read)


def _compressed_tensors(settings: Mapping[str, Any]) -> Layout:
    groups = list((settings.get("config_groups") or {}).values())
    weights = (groups[0].get("weights") or {}) if len(groups) == 1 else {}
    if settings.get("format") != "pack-quantized" or weights.get("type") != "int":
        raise ValueError(
            "[import] a compressed-tensors checkpoint must be pack-quantized with "
            f"one group of int weights but is {settings.get('format')!r} with "
            f"{len(groups)}."
        )
    bits = int(weights.get("num_bits", 8))  # 8 is the format's own default

    def read(parts: Parts, dtype: str) -> tuple[Quantized, np.ndarray | None]:
        return from_compressed_tensors(
            parts.need("weight_packed"),
            parts.need("weight_scale"),
            parts.get("weight_zero_point"),
            parts.get("weight_g_idx"),
            bits,
            dtype,
        )

    names = ("packed", "scale", "zero_point", "shape", "g_idx")
    parts = tuple(f"weight_{name}" for name in names)
    return Layout("weight_packed", "weight_scale", parts, read)


METHODS: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
}
"""`quant_method` of a checkpoint to a function from its settings to its layout."""

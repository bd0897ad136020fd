"""The layouts of AutoAWQ: GEMM, GEMV and GEMVFast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_nibble.conversion.packed_layouts import (
    Parts,
    QWeight,
    group_map,
    require_shape,
)
from mlx_nibble.conversion.packed_settings import (
    Scheme,
    refuse,
    scheme,
)
from mlx_nibble.io import packed
from mlx_nibble.io.packed import Unpacked, affine
from mlx_nibble.io.values import shown, whole

_VERSIONS = ("gemm", "gemv", "gemv_fast")
_BITS = 4


class AWQ(QWeight):
    """The layouts of AutoAWQ, which GPTQModel writes too: 4 bits."""

    def __init__(self, settings: Mapping[str, Any]):
        """Check the settings."""
        keys = ("version", "checkpoint_format", "format")
        stated = next((settings[k] for k in keys if settings.get(k)), "gemm")
        version = stated.lower() if isinstance(stated, str) else stated
        if version not in _VERSIONS:
            refuse(
                f"an AWQ checkpoint must be of version {', '.join(_VERSIONS)} but "
                f"is of {shown(stated)}"
            )
        bits = settings.get("bits", _BITS)
        whole("import", "bits of an AWQ checkpoint", bits, _BITS, _BITS)
        self._read = {"gemm": self._gemm, "gemv": self._gemv}.get(version, self._fast)
        usual = Scheme(_BITS, 128)  # AutoAWQ's default
        self._scheme = scheme(settings, "quantization_config", usual)

    def read(self, parts: Parts) -> Unpacked:
        """Return a matrix."""
        return self._read(parts)

    def _gemm(self, parts: Parts) -> Unpacked:
        qweight, scales = parts.integers("qweight"), parts.values("scales")
        qzeros, (groups, rows) = parts.integers("qzeros"), scales.shape
        require_shape("qweight", qweight, (len(qweight), rows // 8))
        require_shape("qzeros", qzeros, (groups, rows // 8))
        order = group_map(parts, "g_idx", len(qweight), self._scheme, groups)
        codes, zeros = packed.awq_columns(qweight), packed.awq_columns(qzeros)
        return affine(codes.T, scales.T, zeros.T, order, _BITS)

    def _gemv(self, parts: Parts) -> Unpacked:
        qweight, scales = parts.integers("qweight"), parts.values("scales")
        (rows, words), qzeros = qweight.shape, parts.integers("qzeros")
        inputs, groups = 8 * words, self._groups(8 * words, scales.shape[-1])
        require_shape("scales", scales, (rows, 8 * qzeros.shape[-1]))
        require_shape("qzeros", qzeros, (rows, qzeros.shape[-1]))
        return affine(
            packed.stream(qweight, _BITS, inputs),
            scales[:, :groups],
            packed.stream(qzeros, _BITS, groups),
            group_map(parts, "g_idx", inputs, self._scheme, groups),
            _BITS,
        )

    def _fast(self, parts: Parts) -> Unpacked:
        qweight, scales = parts.integers("qweight"), parts.values("scales")
        biases, (blocks, inputs) = parts.values("qzeros"), qweight.shape
        groups = self._groups(inputs, len(scales))
        require_shape("scales", scales, (len(scales), 4 * blocks))
        require_shape("qzeros", biases, scales.shape)
        if qweight.dtype.itemsize != 2 or inputs % 64:
            raise ValueError(
                f"must have 16-bit words of a multiple of 64 inputs but has "
                f"{qweight.dtype} of {inputs}"
            )
        return Unpacked(
            packed.awq_fast_rows(qweight),
            scales[:groups].T,
            biases[:groups].T,
            group_map(parts, "g_idx", inputs, self._scheme, groups),
            _BITS,
        )

    def _groups(self, inputs: int, room: int) -> int:
        """Return the number of groups; GEMV's tensors have room for more."""
        groups = self._scheme.groups(inputs)
        if groups > room:
            raise ValueError(f"must have scales of {groups} groups but has {room}")
        return groups

"""The layouts of floats of 8 and 4 bits: FP8 of DeepSeek and others, and ModelOpt.

Scales of activations and of a KV cache say how to round these. MLX rounds neither, so
such tensors are left out, and the model is the more exact one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.conversion.packed_layouts import Parts, require_shape
from mlx_nibble.conversion.packed_settings import refuse, section
from mlx_nibble.floats import E8M0
from mlx_nibble.formats import MODES
from mlx_nibble.io.packed_floats import Floats, Values, e2m1, e4m3
from mlx_nibble.io.values import shown, whole

ROUNDING = ("input_scale", "input_global_scale", "input_zero_point")
"""Tensors of a packed matrix that only say how to round its inputs."""
_OF_CACHES = ("k_scale", "v_scale")
_LARGEST_BLOCK = 1 << 16

Block = tuple[int, int]


def read_e2m1(parts: Parts, mode: str, weight: str, factor: float = 1.0) -> Floats:
    """Return a matrix of E2M1 codes, with the scales of `mode`."""
    octets, scales = parts.integers(weight), parts.integers("weight_scale")
    _require_bytes(weight, octets)
    _require_bytes("weight_scale", scales)
    return e2m1(mode, octets, scales, factor)


def read_e4m3(
    parts: Parts, scale: str, block: Block | None = None, group: int | None = None
) -> Floats | Values:
    """Return a matrix of E4M3 codes.

    Args:
        parts: Its tensors.
        scale: Name of the scales.
        block: Rows and inputs of a block that shares a scale.
        group: Inputs of a group that shares a scale. Without both there is a scale
            for each row, or for the matrix.
    """
    codes, scales = parts.integers("weight"), parts.values(scale, 0, 1, 2)
    _require_bytes("weight", codes)
    rows, inputs = codes.shape
    if block is not None:
        tall, wide = block
        require_shape(scale, scales, (-(-rows // tall), -(-inputs // wide)))
        return e4m3(codes, np.repeat(scales, tall, 0)[:rows], wide)
    if scales.size == 1:
        scales = np.broadcast_to(scales.reshape(1, 1), (rows, 1))
    elif scales.ndim == 1:
        scales = scales[:, None]
    size = inputs if group is None else group
    require_shape(scale, scales, (rows, -(-inputs // size)))
    return e4m3(codes, scales, size)


def read_mxfp8(parts: Parts) -> Floats | Values:
    """Return a matrix of E4M3 codes with E8M0 scales, one for each 32 inputs."""
    codes, exponents = parts.integers("weight"), parts.integers("weight_scale")
    _require_bytes("weight", codes)
    _require_bytes("weight_scale", exponents)
    size = MODES["mxfp8"].default_group_size
    require_shape("weight_scale", exponents, (len(codes), -(-codes.shape[1] // size)))
    return e4m3(codes, E8M0[exponents], size)


def _require_bytes(name: str, array: np.ndarray) -> None:
    if array.dtype != np.uint8:
        raise ValueError(f"must have a {name} of bytes but it is {array.dtype}")


def block_of(value: Any, place: str) -> Block:
    """Return the checked rows and inputs of a block.

    Raises:
        ValueError: If they are not two numbers.
    """
    sizes = value if isinstance(value, list) else [value]
    if len(sizes) != 2:
        refuse(f"{place} must have blocks of two sizes but has {shown(value)}")
    tall, wide = (whole("import", place, n, 1, _LARGEST_BLOCK) for n in sizes)
    return tall, wide


class FP8:
    """E4M3 codes with a scale for each block, as DeepSeek and Qwen have them.

    FBGEMM has one for each row, and others one for each matrix.
    """

    def __init__(self, settings: Mapping[str, Any]):
        """Check the settings."""
        if settings.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
            refuse(f"an FP8 checkpoint of e4m3 is required but got {settings['fmt']!r}")
        stated = settings.get("weight_block_size")
        place = "weight_block_size of quantization_config"
        self._block = None if stated is None else block_of(stated, place)

    def paths(self, tensors: Mapping[str, mx.array]) -> list[str]:
        """Return the paths of all packed matrices."""
        ends = (".weight_scale_inv", ".weight_scale")
        found = [n.rpartition(".")[0] for n in tensors if n.endswith(ends)]
        return list(dict.fromkeys(found))

    def parts(self, path: str) -> tuple[str, ...]:
        """Return the names of all tensors that a matrix may have."""
        more = ("activation_scale", "input_scale_ub")
        return ("weight", "weight_scale_inv", "weight_scale", *ROUNDING, *more)

    def scales(self, path: str) -> None:
        """Return None: the scales are not those of an affine form."""

    def read(self, parts: Parts) -> Floats | Values:
        """Return a matrix."""
        inverse = parts.has("weight_scale_inv")
        if inverse and parts.has("weight_scale"):
            raise ValueError("must have one tensor of scales but has two")
        name = "weight_scale_inv" if inverse else "weight_scale"
        return read_e4m3(parts, name, self._block)


class ModelOpt:
    """NVIDIA's ModelOpt: NVFP4, and FP8 with a scale for each matrix."""

    def __init__(self, settings: Mapping[str, Any]):
        """Check the settings; `hf_quant_config.json` has them one level deeper."""
        own = section(settings, "quantization") or settings
        algorithm = own.get("quant_algo")
        if algorithm not in ("NVFP4", "FP8"):
            refuse(
                "a ModelOpt checkpoint must be of NVFP4 or FP8 but is of "
                f"{shown(algorithm)}"
            )
        self._fp4 = algorithm == "NVFP4"
        if self._fp4:
            place = "group_size of quantization_config"
            whole("import", place, own.get("group_size", 16), 16, 16)

    def paths(self, tensors: Mapping[str, mx.array]) -> list[str]:
        """Return the paths of all packed matrices."""
        end = ".weight_scale"
        return [name.removesuffix(end) for name in tensors if name.endswith(end)]

    def parts(self, path: str) -> tuple[str, ...]:
        """Return the names of all tensors that a matrix may have."""
        more = ("weight_scale_2",) if self._fp4 else ()
        return ("weight", "weight_scale", *more, *ROUNDING, *_OF_CACHES)

    def scales(self, path: str) -> None:
        """Return None: the scales are not those of an affine form."""

    def read(self, parts: Parts) -> Floats | Values:
        """Return a matrix."""
        if not self._fp4:
            return read_e4m3(parts, "weight_scale")
        return read_e2m1(parts, "nvfp4", "weight", parts.number("weight_scale_2"))

"""The layouts of compressed-tensors, which llm-compressor writes.

A configuration has groups of settings, and each group targets matrices by name, by
pattern or by class. A group may have a format of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.conversion.packed_floats import (
    ROUNDING,
    Block,
    block_of,
    read_e2m1,
    read_e4m3,
    read_mxfp8,
)
from mlx_nibble.conversion.packed_layouts import Parts, group_map, require_shape
from mlx_nibble.conversion.packed_settings import (
    Scheme,
    group_size,
    matches,
    refuse,
    section,
)
from mlx_nibble.io import packed
from mlx_nibble.io.packed import Unpacked, affine
from mlx_nibble.io.packed_floats import Floats, Values
from mlx_nibble.io.values import shown, texts, whole

_PACKED = ("pack-quantized",)
_PLAIN = ("int-quantized", "naive-quantized")
_E4M3 = ("float-quantized", "naive-quantized")
# Formats of MLX's modes, and width and group size that they must state.
_MODES = {
    "nvfp4-pack-quantized": ("nvfp4", 4, 16),
    "mxfp4-pack-quantized": ("mxfp4", 4, 32),
    "mxfp8-quantized": ("mxfp8", 8, 32),
}
_INTEGERS = ("weight_zero_point", "weight_shape", "weight_g_idx")


@dataclass(frozen=True)
class _Group:
    """One of the configuration's groups.

    Attributes:
        name: Its name.
        targets: Names, `re:` patterns and classes of matrices.
        scheme: How its matrices are stored.
        symmetric: True if zeros are not stored.
        packed: True if codes share words.
        mode: One of MLX's modes of floats, "fp8" for E4M3 codes with other scales, or
            "int".
        block: Rows and inputs that share a scale, of E4M3 codes.
    """

    name: str
    targets: tuple[str, ...]
    scheme: Scheme
    symmetric: bool
    packed: bool
    mode: str = "int"
    block: Block | None = None


class CompressedTensors:
    """The layouts of integers, and of floats of 4 and 8 bits."""

    def __init__(self, settings: Mapping[str, Any]):
        """Check the settings."""
        for key in ("kv_cache_scheme", "transform_config"):
            if settings.get(key):
                refuse(f"a compressed-tensors checkpoint without {key} is required")
        if section(settings, "sparsity_config").get("format", "dense") != "dense":
            refuse("a compressed-tensors checkpoint without sparsity is required")
        groups = section(settings, "config_groups")
        self._groups = [_group(name, groups, settings) for name in groups]

    def paths(self, tensors: Mapping[str, mx.array]) -> list[str]:
        """Return the paths of all packed matrices."""
        ends = (".weight_packed", ".weight_scale")
        found = [n.rpartition(".")[0] for n in tensors if n.endswith(ends)]
        return list(dict.fromkeys(found))

    def parts(self, path: str) -> tuple[str, ...]:
        """Return the names of all tensors that a matrix may have."""
        group = self._group_of(path)
        codes = "weight_packed" if group.packed else "weight"
        more = _INTEGERS if group.mode == "int" else ("weight_global_scale",)
        return (codes, "weight_scale", *more, *ROUNDING)

    def scales(self, path: str) -> str | None:
        """Return the name of the tensor of scales; None if the form is not affine."""
        return "weight_scale" if self._group_of(path).mode == "int" else None

    def read(self, parts: Parts) -> Unpacked | Floats | Values:
        """Return a matrix."""
        group = self._group_of(parts.path)
        if group.mode == "int":
            return _integers(parts, group)
        if group.mode == "fp8":
            size = group.scheme.group_size
            grouped = None if size == -1 else size
            return read_e4m3(parts, "weight_scale", group.block, grouped)
        if group.mode == "mxfp8":
            return read_mxfp8(parts)
        factor = 1.0
        if parts.has("weight_global_scale"):
            factor = _inverse(parts.number("weight_global_scale"))
        return read_e2m1(parts, group.mode, "weight_packed", factor)

    def _group_of(self, path: str) -> _Group:
        """Return the group of a matrix: names go before patterns, these before classes.

        All packed matrices are of the class Linear here.
        """
        for fits in (
            lambda target: target == path,
            lambda target: target[:3] == "re:" and matches(target[3:], path),
            lambda target: target == "Linear",
        ):
            found = [g for g in self._groups if any(map(fits, g.targets))]
            if len({replace(g, name="", targets=()) for g in found}) > 1:
                raise ValueError(
                    f"[import] {path} must have one of config_groups but has "
                    f"{', '.join(shown(g.name) for g in found)}."
                )
            if found:
                return found[0]
        raise ValueError(
            f"[import] {path} must have one of config_groups but has none."
        )


def _group(name: str, groups: Mapping[str, Any], settings: Mapping[str, Any]) -> _Group:
    """Return a checked group of a configuration."""
    place, group = f"config_groups {shown(name)}", section(groups, name)
    weights = section(group, "weights")
    stated = group.get("format") or settings.get("format")
    kind, known = weights.get("type", "int"), (*_PACKED, *_PLAIN)
    targets = tuple(texts("import", f"targets of {place}", group.get("targets")))
    bits = whole("import", f"num_bits of {place}", weights.get("num_bits", 8), 2, 8)
    strategy, size = weights.get("strategy"), weights.get("group_size")
    symmetric = weights.get("symmetric", True) is True
    if kind == "float" and isinstance(stated, str) and stated in _MODES:
        mode, width, group_size_ = _MODES[stated]
        if (bits, size, symmetric) != (width, group_size_, True):
            refuse(
                f"{place} must be symmetric, of {width} bits in groups of "
                f"{group_size_} but has {bits} bits and {shown(size)}"
            )
        return _Group(name, targets, Scheme(width, group_size_), True, width == 4, mode)
    if kind == "float" and stated in _E4M3 and bits == 8 and symmetric:
        block = None
        if strategy == "block":
            structure = f"block_structure of {place}"
            block = block_of(weights.get("block_structure"), structure)
        elif strategy not in (None, "tensor", "channel", "group"):
            refuse(f"{place} must not have the strategy {shown(strategy)}")
        scheme = Scheme(8, _size(strategy, size, place))
        return _Group(name, targets, scheme, True, False, "fp8", block)
    if stated not in known or kind != "int":
        refuse(
            f"{place} must have integers in the format {', '.join(known)}, or floats "
            f"of 8 bits in {', '.join(_E4M3)}, or floats in {', '.join(_MODES)} but "
            f"has {bits} bits of {shown(kind)} in {shown(stated)}"
        )
    if strategy not in (None, "tensor", "channel", "group"):
        refuse(f"{place} must not have the strategy {shown(strategy)}")
    scheme = Scheme(bits, _size(strategy, size, place))
    return _Group(name, targets, scheme, symmetric, stated in _PACKED)


def _size(strategy: Any, size: Any, place: str) -> int:
    """Return the inputs of a group; -1: all of a row."""
    grouped = strategy == "group" or (strategy is None and size is not None)
    return group_size(size, place) if grouped else -1


def _inverse(global_scale: float) -> float:
    """Return the factor of all values, which is one by the global scale."""
    if not math.isfinite(global_scale) or global_scale <= 0:
        raise ValueError(
            f"must have a positive weight_global_scale but it is {global_scale}"
        )
    return 1 / global_scale


def _integers(parts: Parts, group: _Group) -> Unpacked:
    """Return a matrix of integers."""
    bits, offset = group.scheme.bits, 1 << (group.scheme.bits - 1)
    scales = parts.values("weight_scale", 0, 1, 2)
    if group.packed:
        codes = _packed_codes(parts, bits)
    else:
        codes = _unsigned(parts.integers("weight"), "weight", bits)
    rows, inputs = codes.shape
    if scales.size == 1:  # one scale for the whole matrix
        scales = np.broadcast_to(scales.reshape(1, 1), (rows, 1))
    require_shape("weight_scale", scales, (rows, scales.shape[-1]))
    zeros = np.full(scales.shape, offset, np.int32)
    if parts.has("weight_zero_point"):
        zeros = _zeros(parts, group, scales.shape)
    elif not group.symmetric:
        raise ValueError("must have a tensor weight_zero_point but it is missing")
    groups = scales.shape[-1]
    order = group_map(parts, "weight_g_idx", inputs, group.scheme, groups)
    return affine(codes, scales, zeros, order, bits)


def _packed_codes(parts: Parts, bits: int) -> np.ndarray:
    """Return the codes of pack-quantized, `[N, K]`."""
    words = parts.integers("weight_packed")
    shape = parts.integers("weight_shape", 1)
    if shape.shape != (2,) or shape[0] != len(words) or shape[1] < 1:
        raise ValueError(
            f"must have a weight_shape of {len(words)} rows but it is {shape.tolist()}"
        )
    return _fields("weight_packed", words, bits, int(shape[1]))


def _zeros(parts: Parts, group: _Group, shape: tuple[int, ...]) -> np.ndarray:
    """Return the zeros, which are packed along the rows, or signed bytes."""
    name, bits, (rows, groups) = "weight_zero_point", group.scheme.bits, shape
    stored = parts.integers(name, 0, 1, 2)
    if stored.size == 1:
        stored = stored.reshape(1, 1)
    if stored.dtype == np.int32 and group.packed and stored.shape != (1, 1):
        require_shape(name, stored, (len(stored), groups))
        return _fields(name, stored.T, bits, rows).T.astype(np.int32)
    zeros = _unsigned(stored, name, bits).astype(np.int32)
    if zeros.shape not in (shape, (1, 1)):
        require_shape(name, zeros, shape)
    return np.broadcast_to(zeros, shape)


def _fields(name: str, words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpack rows of words in the present or the former packing, by their number.

    Both are the same for 2, 4 and 8 bits, and differ in size for most other rows.
    """
    dense, former = -(-count * bits // 32), -(-count // (32 // bits))
    if words.dtype != np.int32 or words.shape[1] not in (dense, former):
        raise ValueError(
            f"must have a {name} of {dense} 32-bit words for {count} codes but it is "
            f"{words.dtype} of {words.shape[1]}"
        )
    unpack = packed.stream if words.shape[1] == dense else packed.whole_words
    return unpack(words, bits, count)


def _unsigned(signed: np.ndarray, name: str, bits: int) -> np.ndarray:
    """Return signed integers plus half of their range, as codes."""
    half = 1 << (bits - 1)
    if ((signed < -half) | (signed >= half)).any():
        raise ValueError(
            f"must have a {name} from {-half} to {half - 1} but it has "
            f"{signed.min()} to {signed.max()}"
        )
    return (signed.astype(np.int32) + half).astype(np.uint8)

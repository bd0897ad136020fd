"""The layouts of compressed-tensors, which llm-compressor writes.

A configuration has groups of settings, and each group targets matrices by name, by
pattern or by class. A group may have a format of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

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
from mlx_nibble.io.values import shown, texts, whole

_PACKED = ("pack-quantized",)
_PLAIN = ("int-quantized", "naive-quantized")
_REST = ("zero_point", "shape", "g_idx")


@dataclass(frozen=True)
class _Group:
    """One of the configuration's groups.

    Attributes:
        name: Its name.
        targets: Names, `re:` patterns and classes of matrices.
        scheme: How its matrices are stored.
        symmetric: True if zeros are not stored.
        packed: True if codes share words.
    """

    name: str
    targets: tuple[str, ...]
    scheme: Scheme
    symmetric: bool
    packed: bool


class CompressedTensors:
    """The layouts pack-quantized, int-quantized and naive-quantized."""

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
        codes = "weight_packed" if self._group_of(path).packed else "weight"
        return (codes, "weight_scale", *(f"weight_{part}" for part in _REST))

    def scales(self, path: str) -> str:
        """Return the name of the tensor of scales."""
        return "weight_scale"

    def read(self, parts: Parts) -> Unpacked:
        """Return a matrix."""
        group = self._group_of(parts.path)
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
            if len({(g.scheme, g.symmetric, g.packed) for g in found}) > 1:
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
    if stated not in (*_PACKED, *_PLAIN) or weights.get("type", "int") != "int":
        refuse(
            f"{place} must have integer weights in the format "
            f"{', '.join((*_PACKED, *_PLAIN))} but has "
            f"{shown(weights.get('type'))} and {shown(stated)}"
        )
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy not in (None, "tensor", "channel", "group"):
        refuse(f"{place} must not have the strategy {shown(strategy)}")
    grouped = strategy == "group" or (strategy is None and size is not None)
    return _Group(
        name,
        tuple(texts("import", f"targets of {place}", group.get("targets"))),
        Scheme(
            whole("import", f"num_bits of {place}", weights.get("num_bits", 8), 2, 8),
            group_size(size, place) if grouped else -1,
        ),
        weights.get("symmetric", True) is True,
        stated in _PACKED,
    )


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

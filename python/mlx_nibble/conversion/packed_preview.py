"""The folder that an import of a packed checkpoint would write, without writing it.

Matrices whose names differ in numbers only, with tensors of the same shapes, are a
kind. The first of each kind is read and formed; it stands for the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_nibble.conversion.options import KEEP
from mlx_nibble.conversion.packed_forms import Formed
from mlx_nibble.conversion.packed_import import weight_files_of
from mlx_nibble.conversion.packed_run import (
    AGAIN_BITS,
    AGAIN_GROUP,
    METHODS,
    PackedRun,
    producers,
)
from mlx_nibble.evaluation.memory import (
    Inventory,
    MatrixBytes,
    activation_bytes,
    kv_bytes_per_token,
    stored,
)
from mlx_nibble.formats import SCALE_BYTES, Format
from mlx_nibble.io.checkpoint import read_tensors
from mlx_nibble.io.config import read_config
from mlx_nibble.io.packed_floats import Floats
from mlx_nibble.io.packing import IMPORTED, packing
from mlx_nibble.layerwise.matrices import natural

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class PackedKind:
    """Matrices of one kind.

    Attributes:
        name: Their path, with * for numbers.
        count: Number of them.
        becomes: The format in MLX, in words.
        error: Relative error of the first one's values, root mean square.
        note: Further facts in words; empty if there are none.
    """

    name: str
    count: int
    becomes: str
    error: float
    note: str


@dataclass(frozen=True)
class Preview:
    """The folder that an import would write.

    Attributes:
        tool: Name of the tool that packed the checkpoint.
        kinds: Its packed matrices.
        inventory: Bytes of the folder.
    """

    tool: str
    kinds: tuple[PackedKind, ...]
    inventory: Inventory


def preview(folder: Path) -> Preview:
    """Return what `nibble convert` would write for a packed folder.

    Raises:
        ValueError: If the checkpoint is malformed or not supported.
        OSError: If a file cannot be read.
    """
    config = read_config(folder, "inspect")
    settings = packing(folder, config, "inspect")
    assert settings is not None
    layout = METHODS[settings["quant_method"]](settings)
    run = PackedRun(layout, read_tensors(weight_files_of(folder)), None, KEEP[0])
    rows, kinds = [], []
    for name, paths in _kinds(run):
        found = run.form(paths[0])
        again = found.order is not None and not _is_settled(paths[0], run)
        made = [_row(path, found, again, run.dtype) for path in paths]
        note = "" if found.order is None else "inputs in another order"
        note = "rounded again: act-order" if again else note
        kinds.append(PackedKind(name, len(paths), made[0].label, found.error, note))
        rows += made
        if isinstance(found.matrix, Floats) and found.matrix.factor != 1:
            rows += [MatrixBytes(f"{path}.global_scale", (1,), 4) for path in paths]
    rows += [MatrixBytes(k, tuple(v.shape), v.nbytes) for k, v in run.plain.items()]
    rows.sort(key=lambda row: natural(row.path))
    sizes = kv_bytes_per_token(config), activation_bytes(config)
    tool = IMPORTED[settings["quant_method"]]
    return Preview(tool, tuple(kinds), Inventory(tuple(rows), *sizes))


def _kinds(run: PackedRun) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the paths of each kind."""
    kinds: dict[tuple, list[str]] = {}
    for path in run.paths:
        names = (f"{path}.{part}" for part in run.layout.parts(path))
        parts = [run.tensors.get(name) for name in names]
        shapes = tuple(None if p is None else (p.shape, p.dtype) for p in parts)
        kinds.setdefault((_NUMBER.sub("*", path), shapes), []).append(path)
    for (name, _), paths in kinds.items():
        yield name, paths


def _is_settled(path: str, run: PackedRun) -> bool:
    """Tell whether the outputs of other matrices can be permuted instead."""
    makers = producers(path)
    return bool(makers) and set(makers) <= set(run.paths)


def _row(path: str, found: Formed, again: bool, dtype: str) -> MatrixBytes:
    matrix = found.matrix
    if isinstance(matrix, np.ndarray):
        return MatrixBytes(path, matrix.shape, matrix.size * SCALE_BYTES[dtype])
    if isinstance(matrix, Floats):
        inputs = matrix.words.shape[-1] * 32 // matrix.bits
        return stored(path, (*matrix.words.shape[:-1], inputs), matrix.form)
    form = Format(matrix.bits, matrix.group_size, dtype)
    form = Format(AGAIN_BITS, AGAIN_GROUP, dtype) if again else form
    return stored(path, matrix.codes.shape, form)

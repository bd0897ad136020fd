"""Choices that were measured on this machine, for the planner to follow.

``nibble tune`` times every candidate for a product, MLX's operation among them, and
keeps the fastest here: one table for each device, in the user's cache folder.
:func:`mlx_nibble.accelerate` has the planner look into it before its heuristics. A
table is only ever a choice among candidates that are right; one that is damaged, or
of another machine or version, is not used.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble import _native
from mlx_nibble.io.atomic import write_text
from mlx_nibble.io.cache import cache_dir, cache_lock

SCHEMA = "mlx-nibble/tuned/1"
LEAVE_TO_MLX = "mlx"
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

# More than a tuner writes for a hundred models; a file of strangers may be anything.
_LARGEST_FILE = 4 << 20
_LARGEST_SIZE = 2**31 - 1
# Those of kernel_name.h and cpu_planner.h.
_CHOICE = re.compile(r"[a-z0-9_]{1,96}")


@dataclass(frozen=True, order=True)
class Key:
    """What shares a choice: y = x @ w_hat.T, x [rows, K], w [N, K].

    Attributes:
        rows: The largest number of its class, as :func:`row_class` gives it.
        dtype: Of x and y.
        scale_dtype: Of scales and biases.
        symmetric: The biases are known to be -2**(bits - 1) * scales.
        activations: None or "int8", as the operation is asked for.
    """

    rows: int
    N: int
    K: int
    bits: int
    group_size: int
    dtype: str
    scale_dtype: str
    symmetric: bool = False
    activations: str | None = None

    @property
    def shape(self) -> tuple:
        """As the extension takes it."""
        dtype, scale_dtype = DTYPES[self.dtype], DTYPES[self.scale_dtype]
        sizes = (self.rows, self.N, self.K)
        form = (self.bits, self.group_size, self.symmetric)
        return (*sizes, dtype, scale_dtype, *form)

    @property
    def int8(self) -> bool:
        """As the extension takes it."""
        return self.activations == "int8"


@dataclass(frozen=True)
class Choice:
    """What was found to be the fastest.

    Attributes:
        name: Of a candidate, or :data:`LEAVE_TO_MLX`; None for whatever the planner
            chooses by itself, which nothing beats by more than noise.
        faster: Times as fast as the planner's own choice; 1 if that is it.
    """

    name: str | None
    faster: float = 1.0


Table = dict[Key, Choice]


def row_class(rows: int) -> int:
    """The largest number of rows that shares the choice of ``rows``."""
    return 1 if _native.ext is None else _native.ext.row_class(rows)


def machine() -> dict[str, Any]:
    """What a table holds for: the default device, and the versions."""
    from mlx_nibble import __version__

    ext = _native.ext
    device = str(mx.default_device().type).removeprefix("DeviceType.")
    info = mx.device_info(mx.default_device())
    found: dict[str, Any] = {"device": device}
    if device == "cpu":
        found |= {"name": str(info.get("device_name", ""))}
        if ext is not None:
            found |= {"isa": ext.cpu_isa(), "threads": ext.cpu_threads()}
    else:
        found |= {"name": str(info.get("architecture", ""))}
    versions = {"mlx": _native.MLX_VERSION, "mlx_nibble": __version__}
    return found | versions


def path() -> Path:
    """The file of the default device's table, whether there is one or not."""
    name = "_".join(str(value) for value in machine().values())
    return cache_dir() / "tuned" / f"{re.sub('[^A-Za-z0-9.]+', '-', name)}.json"


def load() -> Table:
    """The default device's table; empty if there is none, or, with one warning for
    each file, none that can be used."""
    file = path()
    try:
        stat = file.stat()
    except OSError:
        return {}
    try:
        if stat.st_size > _LARGEST_FILE:
            raise ValueError(f"it has {stat.st_size} bytes")
        return _parse(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _warn_once(file, stat.st_mtime_ns, error)
        return {}


def save(new: Mapping[Key, Choice]) -> Path:
    """Add to the default device's table, whole or not at all.

    Raises:
        OSError: If the cache folder cannot be written.
    """
    file = path()
    with cache_lock("tuned"):
        file.parent.mkdir(parents=True, exist_ok=True)
        table = {**load(), **new}
        entries = [
            asdict(key) | asdict(table[key]) for key in sorted(table, key=_order)
        ]
        rows = ",\n".join(json.dumps(entry) for entry in entries)
        head = json.dumps({"schema": SCHEMA, "machine": machine()})
        write_text(file, f'{head[:-1]}, "choices": [\n{rows}\n]}}\n')
    return file


def clear() -> Path | None:
    """Remove the default device's table; returns where it was, if there was one."""
    file = path()
    try:
        file.unlink()
    except FileNotFoundError:
        return None
    return file


def in_use() -> tuple[int, Table]:
    """The default device's table as the operations take it, and what it says.

    It is read anew only if the file has changed. 0 if there is none.
    """
    if _native.ext is None:
        return 0, {}
    file = path()
    try:
        stat = file.stat()
    except OSError:
        return 0, {}
    known = (str(file), stat.st_mtime_ns, stat.st_size)
    if known not in _known:
        table = load()
        _known[known] = register(table), table
    return _known[known]


def register(table: Mapping[Key, Choice]) -> int:
    """A table as the operations take it; 0 if it holds no choice but the planner's."""
    chosen = [(k.shape, k.int8, c.name) for k, c in table.items() if c.name]
    if _native.ext is None or not chosen:
        return 0
    return _native.ext.add_tuning(chosen)


_known: dict[tuple[str, int, int], tuple[int, Table]] = {}
_warned: set[tuple[str, int]] = set()


def _order(key: Key) -> tuple:
    form = (key.bits, key.group_size, key.dtype, key.scale_dtype, key.symmetric)
    return (key.N, key.K, *form, key.activations or "", key.rows)


def _parse(stored: Any) -> Table:
    if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
        raise ValueError(f"the schema {SCHEMA!r} was required")
    if stored.get("machine") != machine():
        raise ValueError("it is of another machine or version")
    return dict(_entries(stored["choices"]))


def _entries(stored: Iterable[Any]) -> Iterable[tuple[Key, Choice]]:
    names = [field.name for field in fields(Key)]
    for entry in stored:
        if not isinstance(entry, dict) or set(entry) != {*names, "name", "faster"}:
            raise ValueError("a choice has other fields")
        key = Key(**{name: entry[name] for name in names})
        for size in (key.rows, key.N, key.K, key.bits, key.group_size):
            if type(size) is not int or not 1 <= size <= _LARGEST_SIZE:
                raise ValueError("a size is no positive integer")
        if key.dtype not in DTYPES or key.scale_dtype not in DTYPES:
            raise ValueError("a type is none that kernels compute in")
        if type(key.symmetric) is not bool or key.activations not in (None, "int8"):
            raise ValueError("a format is none that there is")
        name, faster = entry["name"], entry["faster"]
        if name is not None and not _CHOICE.fullmatch(name):
            raise ValueError("a candidate has no such name")
        if not isinstance(faster, int | float) or not 0 < faster < 1e9:
            raise ValueError("a ratio is no positive number")
        yield key, Choice(name, float(faster))


def _warn_once(file: Path, changed: int, error: Exception) -> None:
    if (str(file), changed) in _warned:
        return
    _warned.add((str(file), changed))
    reason = " ".join(str(error).split()) or type(error).__name__
    warnings.warn(
        f"mlx-nibble does not use the tuned table {str(file)!r}: {reason[:200]}. "
        "`nibble tune` makes a new one, `nibble tune --clear` removes it.",
        RuntimeWarning,
        stacklevel=4,
    )

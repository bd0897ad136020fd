"""Choices that were measured on this machine, for the planner to follow.

``nibble tune`` times every candidate for a product, MLX's operation among them. It
keeps the fastest in a table in the user's cache folder: one table for each device.
:func:`mlx_nibble.accelerate` has the planner look into the table before it applies its
heuristics. A table can only choose among correct candidates. A table that is damaged,
or from another machine or version, is not used.
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
from mlx_nibble._arguments import check_activations
from mlx_nibble._version import __version__
from mlx_nibble.io.atomic import write_text
from mlx_nibble.io.cache import cache_dir, cache_lock
from mlx_nibble.io.stranger import read_json
from mlx_nibble.ops import DTYPES

SCHEMA = "mlx-nibble/tuned/1"
LEAVE_TO_MLX = "mlx"

# More than a tuner writes for a hundred models. A stranger's file may have any size.
_LARGEST_FILE = 4 << 20
_LARGEST_SIZE = 2**31 - 1
# Names of kernel_name.h and cpu_planner.h.
_CHOICE = re.compile(r"[a-z0-9_]{1,96}")


@dataclass(frozen=True, order=True)
class Key:
    """Products that share a choice: y = x @ w_hat.T, x [rows, K], w [N, K].

    Attributes:
        rows: Largest number of rows of the class, from :func:`row_class`.
        dtype: Type of x and y.
        scale_dtype: Type of scales and biases.
        symmetric: True if the biases are known to be -2**(bits - 1) * scales.
        activations: None or "int8", as in the call of the operation.
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
        """The extension's argument ``shape``."""
        dtype, scale_dtype = DTYPES[self.dtype], DTYPES[self.scale_dtype]
        sizes = (self.rows, self.N, self.K)
        form = (self.bits, self.group_size, self.symmetric)
        return (*sizes, dtype, scale_dtype, *form)

    @property
    def int8(self) -> bool:
        """The extension's argument ``int8_activations``."""
        return self.activations == "int8"


@dataclass(frozen=True)
class Choice:
    """The fastest candidate.

    Attributes:
        name: Name of a candidate, or :data:`LEAVE_TO_MLX`. None keeps the planner's own
            choice, which no candidate beats by more than noise.
        faster: Speed relative to the planner's own choice; 1 for that choice.
    """

    name: str | None
    faster: float = 1.0


Table = dict[Key, Choice]


def row_class(rows: int) -> int:
    """Return the largest number of rows that shares the choice of ``rows``."""
    return 1 if _native.ext is None else _native.ext.row_class(rows)


def machine() -> dict[str, Any]:
    """Return what a table is valid for: the default device and the versions."""
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
    versions = {"mlx": _native.mlx_version, "mlx_nibble": __version__}
    return found | versions


def path() -> Path:
    """Return the path of the default device's table, which may not exist."""
    name = "_".join(str(value) for value in machine().values())
    return cache_dir() / "tuned" / f"{re.sub('[^A-Za-z0-9.]+', '-', name)}.json"


def load() -> Table:
    """Return the default device's table.

    The table is empty if there is no file. It is empty, too, if the file cannot be
    used; each such file causes one warning.
    """
    try:
        file = path()
        stat = file.stat()
    except OSError:
        return {}
    try:
        return _parse(read_json(file, "tune", _LARGEST_FILE))
    except (OSError, ValueError, KeyError, TypeError) as error:
        _warn_once(file, stat.st_mtime_ns, error)
        return {}


def save(new: Mapping[Key, Choice]) -> Path:
    """Add choices to the default device's table, in one atomic write.

    Returns:
        The path of the table.

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
    """Remove the default device's table; return its path, or None without one."""
    file = path()
    try:
        file.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return file


def in_use() -> tuple[int, Table]:
    """Return the default device's table: the argument ``tuning``, and its choices.

    ``tuning`` is 0 without a table. The file is read again only if it has changed.
    """
    if _native.ext is None:
        return 0, {}
    try:
        file = path()
        stat = file.stat()
    except OSError:
        return 0, {}
    known = (str(file), stat.st_mtime_ns, stat.st_size)
    if known not in _known:
        table = load()
        _known[known] = register(table), table
    return _known[known]


def register(table: Mapping[Key, Choice]) -> int:
    """Return the argument ``tuning`` of the operations for a table.

    0 if every choice of the table is the planner's.
    """
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
    _require(isinstance(stored, dict), "a JSON object", stored)
    for name, value in (("schema", SCHEMA), ("machine", machine())):
        _require(stored.get(name) == value, f"{name} {value!r}", stored.get(name))
    return dict(_entries(stored["choices"]))


def _entries(stored: Iterable[Any]) -> Iterable[tuple[Key, Choice]]:
    names = [field.name for field in fields(Key)]
    for entry in stored:
        known = isinstance(entry, dict) and set(entry) == {*names, "name", "faster"}
        _require(known, "a choice with the fields of this version", entry)
        key = Key(**{name: entry[name] for name in names})
        for name in ("rows", "N", "K", "bits", "group_size"):
            size = entry[name]
            fits = type(size) is int and 1 <= size <= _LARGEST_SIZE
            _require(fits, f"{name} from 1 to {_LARGEST_SIZE}", size)
        for name in ("dtype", "scale_dtype"):
            _require(entry[name] in DTYPES, f"{name} of {tuple(DTYPES)}", entry[name])
        _require(type(key.symmetric) is bool, "a boolean symmetric", key.symmetric)
        check_activations("tune", key.activations)
        name, faster = entry["name"], entry["faster"]
        valid = name is None or _CHOICE.fullmatch(name)
        _require(valid, "a candidate's name", name)
        ratio = isinstance(faster, int | float) and 0 < faster < 1e9
        _require(ratio, "a positive ratio", faster)
        yield key, Choice(name, float(faster))


def _require(met: object, required: str, got: object) -> None:
    if not met:
        raise ValueError(f"[tune] {required} was required but got {got!r:.80}.")


def _warn_once(file: Path, changed: int, error: Exception) -> None:
    if (str(file), changed) in _warned:
        return
    _warned.add((str(file), changed))
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    warnings.warn(
        f"mlx-nibble does not use the tuned table {str(file)!r}: {reason[:300]}. "
        "`nibble tune` makes a new one, `nibble tune --clear` removes it.",
        RuntimeWarning,
        stacklevel=4,
    )

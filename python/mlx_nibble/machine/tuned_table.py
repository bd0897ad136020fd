"""Choices that were measured on this machine, for the planner to follow.

``nibble tune`` times every candidate for a product, MLX's operation among them. On a
GPU, a :mod:`duel` between the planner's own choice and MLX's operation comes before
that. Both keep the fastest in a table in the user's cache folder: one table for each
device. :func:`mlx_nibble.accelerate` has the planner look into the table before it
applies its heuristics. A table can only choose among correct candidates. A table that
is damaged, or from another machine or version, is not used.
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
from mlx_nibble._arguments import activation_bits
from mlx_nibble._version import __version__
from mlx_nibble.io.atomic import write_text
from mlx_nibble.io.cache import cache_dir, cache_lock
from mlx_nibble.io.stranger import read_json
from mlx_nibble.machine import verdicts
from mlx_nibble.ops import DTYPES

SCHEMA = "mlx-nibble/tuned/2"
LEAVE_TO_MLX = "mlx"
# The planner's own choice, where it is known not to be slower than MLX's operation.
OURS = "ours"
TUNE, DUEL = "tune", "duel"

# More than a tuner writes for a hundred models. A stranger's file may have any size.
_LARGEST_FILE = 4 << 20
_LARGEST_SIZE = 2**31 - 1
# Names of kernel_name.h and cpu_planner.h.
_CHOICE = re.compile(r"[a-z0-9_]{1,96}")


@dataclass(frozen=True, order=True)
class Key:
    """Products that share a choice: y = x @ w_hat.T, x [rows, K], w [N, K].

    Or, with experts, y[i] = x[i] @ w_hat[chosen[i]].T, w [experts, N, K].

    Attributes:
        rows: Largest number of rows of the class, from :func:`row_class`.
        dtype: Type of x and y.
        scale_dtype: Type of scales and biases.
        symmetric: True if the biases are known to be -2**(bits - 1) * scales.
        activations: None or "int8", as in the call of the operation.
        experts: Matrices that rows choose from; 0 for one matrix.
        sorted: True if the chosen numbers never decrease.
        mode: MLX's name of the mode.
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
    experts: int = 0
    sorted: bool = False
    mode: str = "affine"

    @property
    def shape(self) -> tuple:
        """The extension's argument ``shape``."""
        dtype, scale_dtype = DTYPES[self.dtype], getattr(mx, self.scale_dtype)
        sizes = (self.rows, self.N, self.K)
        mode = "symmetric" if self.symmetric else self.mode
        form = (self.bits, self.group_size, mode)
        return (*sizes, dtype, scale_dtype, *form, self.experts, self.sorted)

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
        faster: Speed relative to the planner's own choice; 1 for that choice. After a
            duel, the speed relative to the loser.
        by: :data:`TUNE` or :data:`DUEL`.
    """

    name: str | None
    faster: float = 1.0
    by: str = TUNE


Table = dict[Key, Choice]


def row_classes() -> list[int]:
    """Return the largest number of rows of each class on the default device."""
    return [1] if _native.ext is None else _native.ext.row_classes()


def row_class(rows: int) -> int:
    """Return the largest number of rows that shares the choice of ``rows``."""
    classes = row_classes()
    return next((largest for largest in classes if rows <= largest), classes[-1])


def machine() -> dict[str, Any]:
    """Return what a table is valid for: the default device and the versions."""
    ext = _native.ext
    device = mx.default_device().type.name
    found: dict[str, Any] = {"device": device}
    if device == "cpu":
        info = mx.device_info(mx.default_device())
        found |= {"name": str(info.get("device_name", ""))}
        if ext is not None:
            found |= {"isa": ext.cpu_isa(), "threads": ext.cpu_threads()}
    else:
        here = verdicts.Machine.here()
        found |= {"name": here.gpu, "system": here.system}
        if verdicts.fences():
            found |= {"barriers": True}
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

    A choice of a duel does not replace one of ``nibble tune``.

    Returns:
        The path of the table.

    Raises:
        OSError: If the cache folder cannot be written.
    """
    file = path()
    with cache_lock("tuned"):
        file.parent.mkdir(parents=True, exist_ok=True)
        table = load()
        for key, choice in new.items():
            if choice.by == TUNE or key not in table or table[key].by == DUEL:
                table[key] = choice
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
    """Return what ``nibble tune`` chose: the argument ``tuning``, and the choices.

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
        table = of_tune(load())
        _known[known] = register(table), table
    return _known[known]


def of_tune(table: Table) -> Table:
    """Return the choices of ``nibble tune`` only."""
    return {key: choice for key, choice in table.items() if choice.by == TUNE}


def register(table: Mapping[Key, Choice]) -> int:
    """Return the argument ``tuning`` of the operations for a table.

    0 if the table has nothing to say.
    """
    chosen = choices(table)
    return _native.ext.add_tuning(chosen) if _native.ext and chosen else 0


def choices(table: Mapping[Key, Choice]) -> list[tuple[tuple, bool, str]]:
    """Return a table as the extension takes it.

    On a CPU, the planner's own choice needs no entry.
    """
    own = "" if mx.default_device().type == mx.DeviceType.cpu else OURS
    named = [(key, choice.name or own) for key, choice in table.items()]
    return [(key.shape, key.int8, name) for key, name in named if name]


_known: dict[tuple[str, int, int], tuple[int, Table]] = {}
_warned: set[tuple[str, int]] = set()


def _order(key: Key) -> tuple:
    form = (key.mode, key.bits, key.group_size, key.dtype, key.scale_dtype)
    form += (key.symmetric,)
    chosen = (key.experts, key.sorted)
    return (key.N, key.K, *form, key.activations or "", *chosen, key.rows)


def _parse(stored: Any) -> Table:
    _require(isinstance(stored, dict), "a JSON object", stored)
    for name, value in (("schema", SCHEMA), ("machine", machine())):
        _require(stored.get(name) == value, f"{name} {value!r}", stored.get(name))
    return dict(_entries(stored["choices"]))


def _entries(stored: Iterable[Any]) -> Iterable[tuple[Key, Choice]]:
    from mlx_nibble.formats import MODES  # imports NumPy, which takes long

    names = [field.name for field in fields(Key)]
    of_choice = [field.name for field in fields(Choice)]
    for given in stored:
        # Earlier versions knew one mode.
        entry: dict[str, Any] = {"mode": "affine"}
        entry |= given if isinstance(given, dict) else {}
        known = set(entry) == {*names, *of_choice}
        _require(known, "a choice with the fields of this version", given)
        key = Key(**{name: entry[name] for name in names})
        for name in ("rows", "N", "K", "bits", "group_size"):
            size = entry[name]
            fits = type(size) is int and 1 <= size <= _LARGEST_SIZE
            _require(fits, f"{name} from 1 to {_LARGEST_SIZE}", size)
        mode = MODES.get(entry["mode"]) if isinstance(entry["mode"], str) else None
        _require(mode, f"a mode of {tuple(MODES)}", entry["mode"])
        for name, allowed in (
            ("dtype", tuple(DTYPES)),
            ("scale_dtype", mode.scale_dtypes if mode else ()),
        ):
            _require(entry[name] in allowed, f"{name} of {allowed}", entry[name])
        fits = type(key.experts) is int and 0 <= key.experts <= _LARGEST_SIZE
        _require(fits, f"experts from 0 to {_LARGEST_SIZE}", key.experts)
        for flag in ("symmetric", "sorted"):
            _require(type(entry[flag]) is bool, f"a boolean {flag}", entry[flag])
        activation_bits("tune", key.activations)
        name, faster = entry["name"], entry["faster"]
        valid = name is None or _CHOICE.fullmatch(name)
        _require(valid, "a candidate's name", name)
        ratio = isinstance(faster, int | float) and 0 < faster < 1e9
        _require(ratio, "a positive ratio", faster)
        _require(entry["by"] in (TUNE, DUEL), f"{TUNE} or {DUEL}", entry["by"])
        yield key, Choice(name, float(faster), entry["by"])


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

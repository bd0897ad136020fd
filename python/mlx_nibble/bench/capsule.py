"""Runs as JSON files with all samples (docs/reference/capsule.schema.json)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_nibble.bench import machine
from mlx_nibble.io.atomic import write_text

SCHEMA = "mlx-nibble/bench/1"
KINDS = ("kernels", "model", "tune")
# More than any run writes: a file may come from a stranger.
_LARGEST_FILE = 256 << 20

Capsule = dict[str, Any]


def new(kind: str, command: Sequence[str], settings: Mapping[str, Any]) -> Capsule:
    """Return a capsule without results.

    Args:
        kind: One of :data:`KINDS`.
        command: The command line. Absolute paths, which may name a person, lose all but
            their last part.
        settings: Settings of the run that the results depend on.
    """
    return {
        "schema": SCHEMA,
        "kind": kind,
        "command": [_named(part) for part in command],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "complete": False,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "settings": dict(settings),
        "peaks": None,
        "results": [],
    }


def _named(part: str) -> str:
    option, equals, value = part.partition("=")
    last = value if equals else option
    if not os.path.isabs(last):
        return part
    return (option + equals if equals else "") + Path(last).name


def default_path(kind: str) -> Path:
    """Return a path in the current folder that names the kind and the time."""
    return Path(f"nibble-{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json")


def require_writable(path: str | os.PathLike[str]) -> Path:
    """Check before a long run that its result can be written; return the path.

    Raises:
        ValueError: If it cannot.
    """
    path = Path(path)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"[bench] a file that can be written is required but got {str(path)!r}."
        )
    return path


def write(capsule: Capsule, path: str | os.PathLike[str]) -> None:
    """Write a capsule completely or not at all. Samples keep six digits.

    Raises:
        OSError: If it cannot be written.
    """
    write_text(path, json.dumps(_rounded(capsule), indent=None) + "\n")


def read(path: str | os.PathLike[str]) -> Capsule:
    """Read a capsule and check every value that is used.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is not a capsule.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise ValueError(
            f"[bench] a capsule of at most {_LARGEST_FILE} bytes was required but got "
            f"{size} bytes in {str(path)!r}."
        )
    try:
        capsule = json.loads(path.read_text(encoding="utf-8"))
        check(capsule)
    except (ValueError, RecursionError) as error:
        reason = str(error).removeprefix("[bench] ")
        raise ValueError(
            f"[bench] a capsule was required but got {str(path)!r}: {reason}"
        ) from error
    return capsule


def check(capsule: Any) -> None:
    """Check every value that is used.

    Raises:
        ValueError: If a value is missing or wrong.
    """
    schema, kind = _part(capsule, "schema", str), _part(capsule, "kind", str)
    if schema != SCHEMA:
        raise ValueError(f"[bench] schema {SCHEMA!r} was required but got {schema!r}.")
    if kind not in KINDS:
        kinds = ", ".join(KINDS)
        raise ValueError(f"[bench] a kind of {kinds} was required but got {kind!r}.")
    for key in ("machine", "versions", "settings"):
        _part(capsule, key, dict)
    for part in _part(capsule, "command", list):
        _require(part, str, "a part of the command")
    for result in _part(capsule, "results", list):
        _part(result, "case", dict)
        for candidate in _part(result, "candidates", dict).values():
            _check_candidate(candidate)


def _check_candidate(candidate: Any) -> None:
    if "skipped" in _require(candidate, dict, "a candidate"):
        _part(candidate, "skipped", str)
        return
    for values in _part(candidate, "passes", list):
        for value in _require(values, list, "a pass"):
            if not (isinstance(value, float | int) and 0 < value < math.inf):
                raise ValueError(
                    f"[bench] a positive sample was required but got {value!r}."
                )


def _part(holder: Any, key: str, kind: type) -> Any:
    """Return a value of a dict, of this type."""
    if key not in _require(holder, dict, f"the holder of {key!r}"):
        raise ValueError(f"[bench] {key!r} was required but got {list(holder)}.")
    return _require(holder[key], kind, repr(key))


def _require(value: Any, kind: type, what: str) -> Any:
    """Return a value of this type."""
    if not isinstance(value, kind):
        raise ValueError(
            f"[bench] {what} of type {kind.__name__} was required but got "
            f"{type(value).__name__}."
        )
    return value


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value

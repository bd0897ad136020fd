"""A run as a JSON file, with all samples: what docs/capsule.schema.json describes."""

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
# More than any run writes; a file of strangers may be anything.
_LARGEST_FILE = 256 << 20

Capsule = dict[str, Any]


def new(kind: str, command: Sequence[str], settings: Mapping[str, Any]) -> Capsule:
    """A capsule without results.

    Args:
        kind: One of :data:`KINDS`.
        command: What was typed; of absolute paths, which may name a person, their last
            part is kept.
        settings: What the results depend on, and the machine does not know.
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
    """In the current folder, named by the time."""
    return Path(f"nibble-{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json")


def require_writable(path: str | os.PathLike[str]) -> Path:
    """Check before a long run that its result can be written.

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
    """Write it whole or not at all. Samples keep six digits.

    Raises:
        OSError: If it cannot be written.
    """
    write_text(path, json.dumps(_rounded(capsule), indent=None) + "\n")


def read(path: str | os.PathLike[str]) -> Capsule:
    """Read a capsule and check all that is computed with.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is not a capsule.
    """
    path = Path(path)
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"[bench] {str(path)!r} is too large for a capsule.")
    try:
        capsule = json.loads(path.read_text(encoding="utf-8"))
        check(capsule)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"[bench] a capsule was required but {str(path)!r} is none: "
            f"{type(error).__name__}: {error}"
        ) from error
    return capsule


def check(capsule: Capsule) -> None:
    """Raise ValueError, KeyError or TypeError unless it can be computed with."""
    if capsule["schema"] != SCHEMA:
        raise ValueError(f"schema {SCHEMA!r} was required but got another")
    if capsule["kind"] not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}")
    for key, kind in (("machine", dict), ("versions", dict), ("settings", dict)):
        _require(capsule[key], kind)
    for part in _require(capsule["command"], list):
        _require(part, str)
    for result in _require(capsule["results"], list):
        _require(result["case"], dict)
        for candidate in _require(result["candidates"], dict).values():
            _check_candidate(candidate)


def _check_candidate(candidate: dict[str, Any]) -> None:
    if "skipped" in candidate:
        _require(candidate["skipped"], str)
        return
    passes = _require(candidate["passes"], list)
    for values in passes:
        for value in _require(values, list):
            if not (isinstance(value, float | int) and 0 < value < math.inf):
                raise ValueError(f"samples must be positive but one is {value!r}")


def _require(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} was required but got {type(value).__name__}")
    return value


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value

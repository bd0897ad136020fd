"""Runs as JSON files with all samples (docs/reference/capsule.schema.json)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_nibble.bench import machine
from mlx_nibble.bench.capsule_form import KINDS, SCHEMA, check
from mlx_nibble.io.atomic import write_text
from mlx_nibble.io.stranger import read_json

# More than any run writes: a file may come from a stranger.
_LARGEST_FILE = 32 << 20

__all__ = ["KINDS", "SCHEMA", "Capsule", "check", "default_path", "new", "read"]
__all__ += ["require_writable", "write"]
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
    try:
        capsule = read_json(path, "bench", _LARGEST_FILE)
        check(capsule)
    except ValueError as error:
        reason = str(error).removeprefix("[bench] ")
        raise ValueError(
            f"[bench] a capsule was required but got {str(path)!r}: {reason}"
        ) from error
    return capsule


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value

"""Sub-commands that are mlx-lm's own, on accelerated models."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from mlx_nibble.lm import run_command

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def run_accelerated(name: str, command: str, arguments: Sequence[str]) -> None:
    """Run an mlx-lm command.

    Args:
        name: Its module in mlx-lm.
        command: Ours: ``nibble COMMAND``.
        arguments: Its command line.

    Raises:
        ValueError: If ``--model`` is a path that does not exist.
    """
    for option in ("--model", "--draft-model", "--adapter-path"):
        _require_exists(option, command, arguments)
    run_command(name, f"nibble {command}", arguments)


def _require_exists(option: str, command: str, arguments: Sequence[str]) -> None:
    """Say so of a missing folder, before it is looked for on the Hub."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="path")
    path = parser.parse_known_args(arguments)[0].path
    if path is None or Path(path).expanduser().exists():
        return
    if path.startswith(".") or not _HUB_NAME.fullmatch(path):
        raise ValueError(f"[{command}] {option} {path!r} does not exist.")

"""Checks the path of a picture before any work. Does not import matplotlib."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

SUFFIXES = (".png", ".svg")


def require_picture(path: str) -> Path:
    """Return the path if a picture can be drawn there.

    Raises:
        ValueError: If matplotlib is not installed, the path is not writable, or its
            suffix is not one of :data:`SUFFIXES`.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "[plot] the package matplotlib is required: run pip install "
            "'mlx-nibble[plot]'."
        )
    if Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK):
        raise ValueError(
            f"[plot] a file that can be written is required but got {path!r}."
        )
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(
            f"[plot] a picture must be named .png or .svg but got {path!r}."
        )
    return Path(path)

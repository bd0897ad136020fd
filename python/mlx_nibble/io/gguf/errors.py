"""The one error that a GGUF file can cause."""

from __future__ import annotations

from typing import NoReturn


def fail(message: str) -> NoReturn:
    """Raise the ``ValueError`` of a wrong file.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"[gguf] {message}")

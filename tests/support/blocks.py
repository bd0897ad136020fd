"""Decoder blocks that are replayed, and their code."""

from typing import Any


def replaying(model: Any) -> list[Any]:
    """Return the blocks of a model that are recorded."""
    return [m for m in model.modules() if hasattr(type(m), "_steps")]


def by_code(model: Any) -> Any:
    """Let the code of all blocks run for each token."""
    for block in replaying(model):
        block.__class__ = type(block).__base__
    return model

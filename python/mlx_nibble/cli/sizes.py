"""Sizes, as options give them."""

from __future__ import annotations

import argparse


def product(text: str) -> tuple[int, ...]:
    """Read ``M,N,K``, or ``N,K`` where each number of rows is meant."""
    return _numbers(text, (2, 3), "M,N,K or N,K")


def matrix(text: str) -> tuple[int, ...]:
    """Read ``N,K``."""
    return _numbers(text, (2,), "N,K")


def _numbers(text: str, counts: tuple[int, ...], form: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) not in counts or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{form} is required but got {text!r}")
    return tuple(int(part) for part in parts)

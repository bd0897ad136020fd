"""Sizes in options."""

from __future__ import annotations

import argparse


def product(text: str) -> tuple[int, ...]:
    """Read ``M,N,K``, or ``N,K`` for every number of rows."""
    return _numbers(text, (2, 3), "M,N,K or N,K")


def matrix(text: str) -> tuple[int, ...]:
    """Read ``N,K``."""
    return _numbers(text, (2,), "N,K")


def _numbers(text: str, counts: tuple[int, ...], form: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) not in counts or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{form} is required but got {text!r}")
    return tuple(int(part) for part in parts)

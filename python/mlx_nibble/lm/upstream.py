"""Checks that mlx-lm's internals, which may change at any time, fit our patches."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import mlx_lm

READ_AGAINST = "0.32.2"
"""The version of mlx-lm whose code every patch in this folder was written for."""


def difference(owner: Any, expected: Mapping[str, str]) -> str | None:
    """Return how a module or class differs from what a patch expects of it.

    Args:
        owner: Module or class of mlx-lm.
        expected: From the name of a function to the parameters that we pass to it or
            take in its place, separated by spaces. An attribute that is no function has
            none.

    Returns:
        One sentence, or None.
    """
    for name, parameters in expected.items():
        value = getattr(owner, name, None)
        full = f"{owner.__name__}.{name}"
        if value is None:
            return f"{full} does not exist"
        if not parameters:
            continue
        try:
            known = list(inspect.signature(value).parameters)
        except (TypeError, ValueError):
            return f"{full} is no function"
        if missing := [p for p in parameters.split() if p not in known]:
            return f"{full} has no parameter {missing[0]}"
    return None


def fits(feature: str, owner: Any, expected: Mapping[str, str]) -> bool:
    """Return whether a patch can be made; warn in one line if it cannot.

    Args:
        feature: Name of the patch's benefit.
        owner: See :func:`difference`.
        expected: See :func:`difference`.
    """
    found = difference(owner, expected)
    if found is not None:
        warnings.warn(
            f"mlx-nibble does without {feature}: {explained(found)}",
            RuntimeWarning,
            stacklevel=3,
        )
    return found is None


def explained(found: str) -> str:
    """Return a difference with the versions that it is between."""
    version = getattr(mlx_lm, "__version__", "unknown")
    return f"{found} in mlx-lm {version}; mlx-lm {READ_AGAINST} is known to work"

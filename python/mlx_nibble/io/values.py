"""Checks of single values from a stranger's file: one form of error, one of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

_LONGEST = 80


def fail(op: str, what: str, required: str, got: Any) -> NoReturn:
    """Raise the error of a value that is not what is required.

    Args:
        op: Name of the operation: ``[op] …``.
        what: Name of the value and of its place.
        required: Description of the right values.
        got: The value.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"[{op}] {what} must be {required} but got {shown(got)}.")


def whole(op: str, what: str, value: Any, least: int, most: int) -> int:
    """Return a checked integer, which is no boolean.

    Raises:
        ValueError: If the value is no integer from `least` to `most`.
    """
    if type(value) is not int or not least <= value <= most:
        fail(op, what, f"a whole number from {least} to {most}", value)
    return value


def mapping(op: str, what: str, value: Any) -> Mapping[str, Any]:
    """Return a checked JSON object.

    Raises:
        ValueError: If the value is something else.
    """
    if not isinstance(value, dict):
        fail(op, what, "a JSON object", value)
    return value


def texts(op: str, what: str, value: Any) -> list[str]:
    """Return a checked list of texts; an empty one for null.

    Raises:
        ValueError: If the value is something else.
    """
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        fail(op, what, "a list of names", value)
    return value


def shown(value: Any) -> str:
    """Return a value as short text; of a container, its type."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    # Python refuses to print integers of thousands of digits.
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."

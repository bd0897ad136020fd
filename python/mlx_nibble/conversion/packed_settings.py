"""The settings of packed checkpoints, checked before anything is read or allocated.

Widths come from a short list, and group sizes are numbers of inputs that the tensors
themselves bound. Every message is one line that names the setting, or the matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import regex

from mlx_nibble.io.values import mapping, shown, whole

# Seconds to match a pattern of a configuration with a name: some patterns never end.
_PATIENCE = 1.0
_LARGEST_GROUP = 2**31 - 1
_MOST_BITS = 8


@dataclass(frozen=True)
class Scheme:
    """How one matrix is stored.

    Attributes:
        bits: Width of a code, 2 to 8.
        group_size: Inputs of a group; -1: one group for each row.
    """

    bits: int
    group_size: int

    def groups(self, inputs: int) -> int:
        """Return the number of groups of a row; the last one may be shorter."""
        return 1 if self.group_size == -1 else -(-inputs // self.group_size)


def refuse(message: str) -> NoReturn:
    """Raise the error of a checkpoint that is not imported.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"[import] {message}: convert the unpacked model that it was made from instead."
    )


def scheme(settings: Mapping[str, Any], place: str, usual: Scheme | None) -> Scheme:
    """Return the checked `bits` and `group_size` of an object of a configuration.

    Args:
        settings: The object.
        place: Description of it, for errors.
        usual: Values for absent keys.
    """
    bits = settings.get("bits", usual and usual.bits)
    return Scheme(
        whole("import", f"bits of {place}", bits, 2, _MOST_BITS),
        group_size(settings.get("group_size", usual and usual.group_size), place),
    )


def group_size(value: Any, place: str) -> int:
    """Return a checked group size: -1, or a positive number of inputs."""
    if value == -1 and not isinstance(value, bool):
        return -1
    return whole("import", f"group_size of {place}", value, 1, _LARGEST_GROUP)


def section(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object inside of settings; an empty one if it is absent or null.

    Raises:
        ValueError: If it is no object.
    """
    return mapping("import", key, settings.get(key) or {})


def matches(pattern: str, path: str) -> bool:
    """Tell whether a regular expression of a configuration begins a matrix's name.

    Raises:
        ValueError: If the expression is malformed, or takes too long.
    """
    try:
        return regex.match(pattern, path, timeout=_PATIENCE) is not None
    except (regex.error, TimeoutError, RecursionError) as error:
        raise ValueError(
            f"[import] the pattern {shown(pattern)} must be a regular expression that "
            f"ends on {path} but got: {error or 'no end'}."
        ) from error

"""Text of strangers made safe for a terminal, in one place.

Names of files, tensors and tokens may hold anything: a sequence that clears the screen,
a line break that fakes a second message, bytes that are no text.
"""

from __future__ import annotations

import io
import sys
from unicodedata import category


def printable(text: str, keep: str = "") -> str:
    """Return a text in which control characters are written as escapes.

    Args:
        text: Any text.
        keep: Control characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep or category(c) == "Zs" else _escaped(c)
        for c in text
    )


def never_fail_to_print() -> None:
    """Let stdout write escapes for characters that its encoding lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _escaped(character: str) -> str:
    # A byte of a name that is no UTF-8, as os.fsdecode returns it.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")

"""Which tests run on Linux only: the SIMT bench and its users, and the cross build."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
# The bench itself, the wheel for macOS that Linux builds, and a folder whose
# conftest.py needs the bench.
FOLDERS = ("macos", "metal", "simt")


def linux_only() -> list[str]:
    """Return these folders and files, relative to tests/."""
    files = (
        path.relative_to(TESTS)
        for path in sorted(TESTS.rglob("test_*.py"))
        if needs_the_bench(path)
    )
    return [*FOLDERS, *(str(file) for file in files if file.parts[0] not in FOLDERS)]


def needs_the_bench(path: Path) -> bool:
    """Return whether a file imports more of tests.simt than its plain numbers."""
    return any(
        name == "tests.simt" or name.startswith("tests.simt.")
        for name in imported(path)
        if name != "tests.simt.numbers"
    )


def imported(path: Path) -> Iterator[str]:
    """Yield the full names that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{name.name}" for name in node.names)

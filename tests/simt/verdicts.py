"""What has passed, remembered by the content of everything that it depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import build, toolchain
from .toolchain import BENCH, CACHE


def once(name: str, kernels: Path, check: Callable[[], None]) -> None:
    """Run `check` unless the same check of the same kernels has passed before.

    Args:
        name: Of the check, with its parameters.
        kernels: The library that it runs; named after its content.
        check: Raises if something is wrong.
    """
    tests = [*BENCH.glob("*.py"), *BENCH.parent.glob("*.py")]
    key = toolchain.digest(
        [name, kernels.name, build.executor().name, toolchain.digest_files(tests)]
    )
    passed = CACHE / "passed" / key
    if not passed.exists():
        check()
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.write_text(name + "\n")

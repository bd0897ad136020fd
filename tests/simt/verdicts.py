"""Remembers checks that have passed, by the content of all their inputs."""

from __future__ import annotations

from collections.abc import Callable

from . import build, toolchain
from .toolchain import BENCH, CACHE


def once(name: str, kernels: str, check: Callable[[], None]) -> None:
    """Run `check` unless the same check of the same kernels has passed before.

    Args:
        name: Name of the check, with its parameters.
        kernels: Name of the kernels' content.
        check: Function that raises on an error.
    """
    tests = [*BENCH.glob("*.py"), *BENCH.parent.glob("*.py")]
    key = toolchain.digest(
        [name, kernels, build.executor().name, toolchain.digest_files(tests)]
    )
    passed = CACHE / "passed" / key
    if not passed.exists():
        check()
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.write_text(name + "\n")

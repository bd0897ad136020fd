"""Measure two builds in turns, each pass in a process of its own.

Runs of one build differ by more than many a change: where a process's pages lie is
decided when it starts, and a machine that others use has its moods. So the builds take
turns, pass by pass, in ABBA order, and each pass is a new process: what the machine
does is everyone's, and where pages lie is drawn anew each time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlx_nibble.bench import capsule
from mlx_nibble.bench.capsule import Capsule

PASSES = 20
SECONDS = 0.05
"""Of rounds of a product in one pass."""

Progress = Callable[[str, int, int], None]
"""Called with what is done, and the steps done and of all."""


def interpreter(path: str | os.PathLike[str]) -> Path | None:
    """The Python that a path names: itself, or of a virtual environment; or None."""
    path = Path(path)
    if path.is_dir():
        path = path / "bin" / "python"
    is_python = path.is_file() and os.access(path, os.X_OK)
    return path.absolute() if is_python and path.suffix != ".json" else None


def run(
    before: Path,
    after: Path,
    arguments: Sequence[str],
    passes: int,
    progress: Progress,
) -> tuple[Capsule, Capsule]:
    """Measure with two Pythons that both have mlx-nibble.

    Args:
        before: The one to compare with.
        after: The new one.
        arguments: Of ``nibble bench kernels``: which products.
        passes: Processes of each.
        progress: Is called before each step.

    Returns:
        A run of each, of equally many passes; fewer than asked for after Ctrl-C.

    Raises:
        RuntimeError: If one of them cannot measure.
    """
    merged: list[Capsule | None] = [None, None]
    try:
        for number in range(passes):
            taken = [{}, {}]
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                step = 2 * number + (side if number % 2 == 0 else 1 - side)
                progress(f"pass {number + 1}", step, 2 * passes)
                taken[side] = _pass((before, after)[side], arguments)
            # Both or neither: passes are compared with their neighbours.
            merged = [_merge(a, b) for a, b in zip(merged, taken, strict=True)]
        progress("done", 2 * passes, 2 * passes)
    except KeyboardInterrupt:
        if merged[0] is None:
            raise
        for made in merged:
            assert made is not None
            made["complete"] = False
    first, second = merged
    assert first is not None and second is not None
    token = os.urandom(8).hex()
    for made in (first, second):
        made["settings"] |= {"in_turns": token, "passes": passes}
    return first, second


def _pass(python: Path, arguments: Sequence[str]) -> Capsule:
    """One pass, in a new process."""
    options = ["--json", "--passes", "1", "--against", "--seconds", str(SECONDS)]
    command = [str(python), "-m", "mlx_nibble.cli", "bench", "kernels"]
    # In a folder that holds no other mlx_nibble to import.
    done = subprocess.run(
        [*command, *arguments, *options],
        capture_output=True,
        text=True,
        cwd=Path(sys.prefix),
    )
    if done.returncode == 130 or done.returncode < 0:
        raise KeyboardInterrupt
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"[compare] {python} could not measure: {said[-1]}")
    try:
        made = json.loads(done.stdout)
        capsule.check(made)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RuntimeError(f"[compare] {python} wrote no run: {error}") from error
    return made


def _merge(made: Capsule | None, taken: dict[str, Any]) -> Capsule:
    """A run, with one more pass."""
    if made is None:
        return taken
    for result, more in zip(made["results"], taken["results"], strict=True):
        if result["case"] != more["case"]:
            raise RuntimeError("[compare] passes did not measure the same products.")
        result["disturbed"] += more.get("disturbed", 0)
        for name, candidate in result["candidates"].items():
            passes = more["candidates"].get(name, {}).get("passes", [[]])
            candidate.get("passes", []).extend(passes)
    made["seconds"] = made.get("seconds", 0) + taken.get("seconds", 0)
    return made

"""Measures builds in turns: sample by sample, with new processes in each pass.

Two runs of one build can differ by more than a change does. The place of a process's
pages in memory is fixed when it starts, and a shared machine is slower for a second or
an hour. So the builds' processes live side by side and take turns, sample by sample in
ABBA order: slow times affect all of them. Each pass starts new processes, so that their
pages get new places.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_nibble.bench import capsule
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.kernels import describe
from mlx_nibble.bench.products import ProductCase
from mlx_nibble.bench.schedule import DROPPED, Undisturbed
from mlx_nibble.machine.turns import balanced_orders
from mlx_nibble.progress import Progress

PASSES = 20
SECONDS = 0.1
"""Time for the rounds of a product in one pass."""

Taken = list[list[float]]
"""Seconds of one product in one pass, in a list for each build."""


def interpreter(path: str | os.PathLike[str]) -> Path | None:
    """Return the Python that a path names, itself or its environment; or None."""
    path = Path(path)
    if path.is_dir():
        path = path / "bin" / "python"
    is_python = path.is_file() and os.access(path, os.X_OK)
    return path.absolute() if is_python and path.suffix != ".json" else None


def run(
    pythons: Sequence[Path],
    cases: Sequence[ProductCase],
    hot: bool,
    passes: int,
    command: Sequence[str],
    progress: Progress,
) -> list[Capsule]:
    """Measure with several Pythons that all have mlx-nibble.

    Args:
        pythons: Interpreter of each build.
        cases: Products; group those of one shape for speed.
        hot: Leave the weights in the cache.
        passes: Number of processes of each build.
        command: The command line.
        progress: Called before each step.

    Returns:
        A run of each build, with equally many passes; fewer after Ctrl-C.

    Raises:
        RuntimeError: If one of the builds cannot measure.
    """
    for case in cases:
        case.check()
    settings = {"hot": hot, "in_turns": os.urandom(8).hex(), "passes": passes}
    made = [capsule.new("kernels", command, settings) for _ in pythons]
    results: list[list[Taken]] = [[] for _ in cases]
    steps, disturbed = passes * len(cases), 0
    try:
        for number in range(passes):
            say = [
                lambda case=case, step=step: progress(describe(case), step, steps)
                for step, case in enumerate(cases, number * len(cases))
            ]
            # Either all builds add a pass or none: neighbours are compared.
            taken, dropped = _quiet_pass(pythons, cases, hot, say)
            disturbed += dropped
            for of_case, more in zip(results, taken, strict=True):
                of_case.append(more)
        complete = True
    except KeyboardInterrupt:
        complete = False
        if not results[0]:
            raise
    progress("done", steps, steps)
    for build, one in enumerate(made):
        one["complete"] = complete
        for case, taken in zip(cases, results, strict=True):
            measured = {"nibble": {"passes": [samples[build] for samples in taken]}}
            result = {"case": asdict(case), "candidates": measured}
            one["results"].append({**result, "disturbed": disturbed})
    return made


def _quiet_pass(
    pythons: Sequence[Path],
    cases: Sequence[ProductCase],
    hot: bool,
    say: Sequence[Callable[[], None]],
) -> tuple[list[Taken], int]:
    """Return a pass without other programs at work, and the number of dropped ones."""
    for dropped in range(DROPPED):
        watch = Undisturbed()
        taken = _pass(pythons, cases, hot, say)
        if watch.so_far():
            return taken, dropped
    return _pass(pythons, cases, hot, say), DROPPED


def _pass(
    pythons: Sequence[Path],
    cases: Sequence[ProductCase],
    hot: bool,
    say: Sequence[Callable[[], None]],
) -> list[Taken]:
    """Measure all products once, in new processes."""
    taken = []
    with ExitStack() as stack:
        # All processes start at the same time, each on a core of its own.
        builds = [stack.enter_context(_build(python)) for python in pythons]
        for build in builds:
            build.say({"cases": [asdict(case) for case in cases], "hot": hot})
        for build in builds:
            build.hear()
        for index in range(len(cases)):
            say[index]()
            taken.append(_rounds(builds, index))
    return taken


def _rounds(builds: Sequence[_Build], index: int) -> Taken:
    """Take rounds of one sample of each build for a time, each order equally often."""
    length = max(build.ask({"enter": index})["chain"] for build in builds)
    orders = balanced_orders(len(builds))
    taken: Taken = [[] for _ in builds]
    start, rounds = time.perf_counter(), 0
    while rounds % len(orders) or not rounds or time.perf_counter() - start < SECONDS:
        for build in orders[rounds % len(orders)]:
            taken[build].append(builds[build].ask({"sample": length})["seconds"])
        rounds += 1
    return taken


class _Build:
    """A process that measures one build."""

    def __init__(self, python: Path, process: subprocess.Popen[str]) -> None:
        self._python = python
        self._process = process

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.say(request)
        return self.hear()

    def say(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._give_up()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._give_up()
        return json.loads(line)

    def _give_up(self) -> None:
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip().splitlines() or ["no message"]
        raise RuntimeError(f"[compare] {self._python} could not measure: {said[-1]}")


@contextmanager
def _build(python: Path) -> Iterator[_Build]:
    process = subprocess.Popen(
        [str(python), "-m", "mlx_nibble.bench.turn"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A folder without another mlx_nibble to import.
        cwd=Path(sys.prefix),
    )
    try:
        yield _Build(python, process)
    finally:
        # The process ends when its input ends.
        process.communicate()

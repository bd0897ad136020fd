"""Which kernels may be used on this machine, remembered in the user's cache folder.

A Metal kernel is compiled by the user's system for the user's GPU, which may be one
that nobody has tested. Its first use there runs a trial (:mod:`trial`). A kernel that
does not compile or is wrong is switched off with a warning. MLX's operation replaces
it. A verdict is valid for the same GPU, system, mlx and mlx-nibble.

A trial may also end the process, or never end. So the kernel is marked before its
trial. If a later process finds the mark of one that has died, it does not use the
kernel. A closed terminal ends a process too. So a process that died while it compiled
several kernels, or timed one that is right, must have a second one to count.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble._version import __version__
from mlx_nibble.io.atomic import write_text
from mlx_nibble.io.cache import cache_dir, cache_lock
from mlx_nibble.io.stranger import read_json
from mlx_nibble.machine import gpu, trial
from mlx_nibble.machine.trial import Verdict

# 20 times the verdicts of all kernels.
_LARGEST_FILE = 4 << 20

# The weight of a trial that ended its process.
CONDEMNED = 2

# The kernels that this process is trying.
_trying: set[str] = set()
_installed: list[Verdicts] = []


@dataclass(frozen=True)
class Machine:
    """The machine that a verdict is valid for.

    Attributes:
        gpu: MLX's architecture string, such as "applegpu_g14s"; "" without a GPU.
        system: Name and version, such as "macOS 15.1".
        mlx: Version.
        mlx_nibble: Version.
    """

    gpu: str
    system: str
    mlx: str
    mlx_nibble: str

    @classmethod
    def here(cls) -> Machine:
        """Return this machine."""
        mac = platform.mac_ver()[0]
        system = f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}"
        return cls(gpu.architecture(), system, mx.__version__, __version__)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class _Stored:
    """The contents of a machine's file.

    Attributes:
        failures: Reason for each tried kernel; None if it may be used.
        trying: Processes that try a kernel: identifier to weight. Dead ones of a
            weight of CONDEMNED in all switch the kernel off.
    """

    failures: dict[str, str | None] = field(default_factory=dict)
    trying: dict[str, dict[int, int]] = field(default_factory=dict)

    def dead(self, kernel: str) -> int:
        """Return the weight of a kernel's processes that have died."""
        if kernel in _trying:
            return 0
        marks = self.trying.get(kernel, {}).items()
        return sum(w for process, w in marks if not _is_other_process(process))


class Verdicts:
    """The verdicts of one machine: the judge that the extension asks."""

    def __init__(self, machine: Machine | None, ext: Any) -> None:
        """Read and try nothing yet.

        Args:
            machine: Machine that the verdicts are valid for; None for this one.
            ext: The extension.
        """
        self._given = machine
        self._ext = ext
        self._known: dict[str, Verdict] | None = None

    @cached_property
    def machine(self) -> Machine:
        """The machine that the verdicts are valid for."""
        return self._given or Machine.here()

    @property
    def path(self) -> Path:
        """The machine's file."""
        variant = ["fences"] if fences() else []
        name = "_".join([*asdict(self.machine).values(), *variant])
        return (
            cache_dir() / "self-check" / f"{re.sub('[^A-Za-z0-9.]+', '-', name)}.json"
        )

    def __call__(self, kernel: str) -> bool:
        """Return whether a kernel may be used; try the kernel if that is unknown."""
        if not self.machine.gpu:
            return False
        verdict = self.known().get(kernel) or self.try_now(kernel) or Verdict(kernel)
        if not verdict.ok:
            warnings.warn(
                f"mlx-nibble does not use its kernel {kernel} on this machine; MLX's "
                f"operation replaces it: {verdict.failure}. `nibble doctor` tries the "
                "kernel again, `nibble doctor --report` writes a report for us.",
                RuntimeWarning,
                stacklevel=2,
            )
        return verdict.ok

    def known(self) -> dict[str, Verdict]:
        """Return the verdicts so far, of other processes too."""
        if self._known is None:
            self._known = _verdicts(self._read())
        return self._known

    def doubted(self) -> set[str]:
        """Return the kernels that a process died with, but may be used."""
        stored = self._read()
        return {k for k in stored.trying if 0 < stored.dead(k) < CONDEMNED}

    @contextmanager
    def being_tried(self, kernels: Sequence[str], weight: int = 1) -> Iterator[None]:
        """Mark kernels while they are tried.

        Args:
            kernels: Their names.
            weight: The weight of the mark if this process dies.
        """
        process = os.getpid()

        def begin(stored: _Stored) -> None:
            for kernel in kernels:
                stored.trying.setdefault(kernel, {})[process] = weight

        def end(stored: _Stored) -> None:
            for kernel in kernels:
                marks = stored.trying.get(kernel, {})
                # A trial that ends well acquits a kernel of earlier deaths.
                if well:
                    marks = {p: w for p, w in marks.items() if _is_other_process(p)}
                marks.pop(process, None)
                stored.trying[kernel] = marks
                if not marks:
                    del stored.trying[kernel]

        well = False
        self._update(begin)
        _trying.update(kernels)
        try:
            yield
            well = True
        finally:
            _trying.difference_update(kernels)
            self._update(end)

    def try_now(self, kernel: str) -> Verdict | None:
        """Run a kernel's trial and keep the verdict, whatever is known of the kernel.

        Only this process keeps a failure that need not last: one that has another
        reason than the kernel, or after which MLX's own operation fails as well.

        Args:
            kernel: Name of the kernel.

        Returns:
            The verdict; None if this machine's GPU never uses the kernel.
        """
        with self.being_tried([kernel], CONDEMNED):
            verdict = trial.check(kernel, self._ext)
            kept = verdict or Verdict(kernel)
            self._known = {**(self._known or {}), kernel: kept}
            if kept.ok or (kept.lasting and trial.gpu_is_sound()):
                lasting = {kernel: kept.failure}
                self._update(lambda stored: stored.failures.update(lasting))
        return verdict

    def _update(self, change: Callable[[_Stored], None]) -> None:
        """Change the file; other processes may do so, too."""
        try:
            with cache_lock("self-check"):
                stored = self._read()
                change(stored)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                content = {"machine": asdict(self.machine), **asdict(stored)}
                write_text(self.path, json.dumps(content, indent=1, sort_keys=True))
        except OSError:
            pass  # Without a cache, every process runs its own trials.

    def _read(self) -> _Stored:
        try:
            content = read_json(self.path, "self-check", _LARGEST_FILE)
            failures = {
                str(kernel): None if failure is None else str(failure)
                for kernel, failure in content["failures"].items()
            }
            trying = {
                str(kernel): {int(p): int(w) for p, w in marks.items()}
                for kernel, marks in content.get("trying", {}).items()
            }
        except (
            ArithmeticError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):
            return _Stored()  # missing or damaged: the next verdict rewrites the file
        return _Stored(failures, trying)


def _verdicts(stored: _Stored) -> dict[str, Verdict]:
    """Return what is known: also of kernels whose trial has ended its process."""
    unfinished = "its last trial did not end, or ended the process"
    known = {k: Verdict(k, failure) for k, failure in stored.failures.items()}
    for kernel in stored.trying:
        if stored.dead(kernel) >= CONDEMNED:
            known[kernel] = Verdict(kernel, unfinished)
    return known


def fences() -> bool:
    """Return whether kernels are compiled with barriers around their products."""
    return os.environ.get("NIBBLE_SIMDGROUP_BARRIERS", "0") != "0"


def _is_other_process(identifier: int) -> bool:
    if identifier <= 0 or identifier == os.getpid():
        return False
    try:
        os.kill(identifier, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def of_gpu() -> Verdicts | None:
    """Return the verdicts of this process's GPU; None without a usable GPU."""
    return next((found for found in _installed if found.machine.gpu), None)


def install(ext: Any) -> None:
    """Have the extension ask for facts of the GPU and for verdicts, when it needs them.

    Nothing is asked of the GPU here: MLX may find none that it can use.
    """
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        return
    _installed[:] = [Verdicts(None, ext)]
    ext.set_judge(_installed[0])
    ext.set_gpu_facts(gpu.facts)
    ext.set_fences(fences())
    # The extension outlives the interpreter: drop its references to Python's objects.
    atexit.register(ext.set_judge, None)
    atexit.register(ext.set_gpu_facts, None)

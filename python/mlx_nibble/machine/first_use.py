"""The duels of a model's products, at the first use of a GPU.

They are held inside :func:`mlx_nibble.accelerate`, within a budget of seconds, and not
beside the user's work. There the GPU is idle, so that timings count. MLX's compiler
holds a lock that would stop other threads. And results do not change while a model
generates. The most useful duels come first. Products without a verdict are left to MLX
until the next call goes on. Verdicts are kept, so later processes find them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

from mlx_nibble.machine import duel, trial, tuned_table
from mlx_nibble.machine.tuned_table import LEAVE_TO_MLX, Choice, Key, Table
from mlx_nibble.machine.verdicts import Verdicts

SECONDS = 5.0
"""The budget of one call. The step that is begun ends."""

ON_OURS = "on our kernels"
SLOWER = "left to MLX, which is as fast or faster"
WRONG = (
    "left to MLX: our kernel failed its trial, or did not end it (`nibble doctor` "
    "tries again)"
)
UNKNOWN = "left to MLX until the next accelerate() has timed them"

_SAID_AFTER = 1.0
# Kernels of one library, as in diagnosis.py.
_AT_ONCE = 16
# Rows up to here have kernels of their own; more are prompts.
_FEW_ROWS = 32

Hold = Callable[[Key, Any], Choice | None]


def keys_of(form: Key) -> list[Key]:
    """Return all classes of rows of a product."""
    keys, before = [], 0
    for rows in tuned_table.row_classes():
        if not form.experts or before + 1 < duel.SORTED_FROM:
            keys.append(replace(form, rows=rows, sorted=False))
        if form.experts and rows >= duel.SORTED_FROM:
            keys.append(replace(form, rows=rows, sorted=True))
        before = rows
    return keys


def stage(key: Key) -> int:
    """Return when a class has its turn: tokens, prompts, then batches of tokens."""
    if key.rows == 1 or (key.experts and key.rows <= duel.CHOSEN):
        return 0
    return 1 if key.rows > _FEW_ROWS else 2


def _turn(key: Key) -> tuple[int, int]:
    # Longer prompts come first.
    return stage(key), -key.rows if stage(key) == 1 else key.rows


class FirstUse:
    """The verdicts of a GPU, and the tables that operations follow."""

    def __init__(
        self,
        ext: Any,
        judge: Verdicts,
        hold: Hold = duel.hold,
        seconds: float = SECONDS,
    ) -> None:
        """Time nothing yet.

        Args:
            ext: The extension.
            judge: Verdicts on the kernels, which the extension asks.
            hold: Function that holds a duel.
            seconds: Budget of a call.
        """
        self._ext, self._judge = ext, judge
        self._hold, self._seconds = hold, seconds
        self._numbers: dict[bool, int] = {}
        self._found: Table = {}
        self._ready: set[str] = set()
        self._failure: str | None = None
        self._lock = threading.Lock()

    def number(self, tuned: bool) -> int:
        """Return the argument ``tuning`` of the operations.

        Args:
            tuned: Whether the table has the choices of ``nibble tune``.
        """
        if tuned not in self._numbers:
            self._numbers[tuned] = self._ext.add_tuning([], True)
        return self._numbers[tuned]

    def settle(self, forms: Iterable[Key], tuned: bool) -> dict[Key, str]:
        """Hold the duels that are missing, and have operations follow the verdicts.

        Args:
            forms: Products of a model; their rows do not matter.
            tuned: Whether a choice of ``nibble tune`` is a verdict.

        Returns:
            One of the constants above for each class of rows: who computes it, and why.
        """
        keys = [key for form in dict.fromkeys(forms) for key in keys_of(form)]
        keys.sort(key=_turn)
        number = self.number(tuned)
        with self._lock:
            stored = tuned_table.load()
            if not tuned:
                stored = {k: c for k, c in stored.items() if c.by != tuned_table.TUNE}
            table = {**self._found, **stored}
            said = threading.Timer(_SAID_AFTER, partial(_say, self._seconds))
            said.daemon = True
            said.start()
            try:
                self._find(keys, table, time.perf_counter() + self._seconds)
            finally:
                said.cancel()
                new = {k: c for k, c in self._found.items() if k not in stored}
                if new:
                    # Without a cache folder, every process holds its own duels.
                    with contextlib.suppress(OSError):
                        tuned_table.save(new)
                table.update(new)
                ready = {k: c for k, c in table.items() if self._is_ready(k, c)}
                self._ext.replace_tuning(number, tuned_table.choices(ready))
        if self._failure is not None:
            warnings.warn(
                "mlx-nibble could not time its kernels, and leaves such products to "
                f"MLX until the next accelerate(): {self._failure}",
                RuntimeWarning,
                stacklevel=2,
            )
            self._failure = None
        return {key: self._standing(key, ready.get(key)) for key in keys}

    def _find(self, keys: Sequence[Key], table: Table, deadline: float) -> None:
        """Compile, try and time, stage by stage, until the deadline."""
        for _, of_stage in groupby(keys, stage):
            some = list(of_stage)
            for kernels in self._libraries(self._kernels(some, table)):
                if time.perf_counter() >= deadline:
                    return
                with self._judge.being_tried(kernels):
                    self._ext.compile_kernels(kernels)
                self._ready.update(kernels)
            self._ext.trusted([self._ext.view_kernel])
            for key in some:
                if key not in table:
                    if time.perf_counter() >= deadline:
                        return
                    try:
                        self._duel(key)
                    except RuntimeError as error:
                        self._failure = self._failure or f"{key.N} x {key.K}: {error}"
                        if not trial.gpu_is_sound():
                            return
                choice = table.get(key, self._found.get(key))
                if choice and choice.name != LEAVE_TO_MLX:
                    self._ext.trusted(self._joining(key))

    def _libraries(self, kernels: Sequence[str]) -> Iterator[list[str]]:
        """Return what to compile together: a kernel that is doubted comes alone."""
        doubted = self._judge.doubted()
        sure = [kernel for kernel in kernels if kernel not in doubted]
        for first in range(0, len(sure), _AT_ONCE):
            yield sure[first : first + _AT_ONCE]
        for kernel in kernels:
            if kernel in doubted:
                yield [kernel]

    def _joining(self, key: Key) -> list[str]:
        """Return the kernels that compute a product together with others."""
        if key.experts and stage(key) > 0:
            return []  # only the few rows of a token are joined
        return duel.joining_kernels_of(key, self._ext)

    def _kernels(self, keys: Sequence[Key], table: Table) -> list[str]:
        """Return the kernels to compile: those that may be used, and are not yet."""
        # Every operand that is a view is copied by this one.
        found: dict[str, None] = {self._ext.view_kernel: None}
        for key in keys:
            choice = table.get(key)
            if choice is not None and choice.name == LEAVE_TO_MLX:
                continue
            names = [*self._chosen(key, choice), *self._joining(key)]
            found |= dict.fromkeys(names)
        known = self._judge.known()
        return [
            kernel
            for kernel in found
            if kernel not in self._ready and (kernel not in known or known[kernel].ok)
        ]

    def _chosen(self, key: Key, choice: Choice | None) -> list[str]:
        """Return the kernels of a choice of ours."""
        if choice is None or choice.name is None:
            return duel.kernels_of(key, self._ext)
        return self._ext.kernels_of(key.shape, choice.name)

    def _is_ready(self, key: Key, choice: Choice) -> bool:
        """Return whether operations may follow a choice without compiling anything."""
        mlx = choice.name == LEAVE_TO_MLX
        return mlx or self._ready.issuperset(self._chosen(key, choice))

    def _duel(self, key: Key) -> None:
        kernels = duel.kernels_of(key, self._ext)
        if not kernels or not self._ext.trusted(kernels):
            return
        with self._judge.being_tried(kernels):
            choice = self._hold(key, self._ext)
        if choice is not None:
            self._found[key] = choice

    def _standing(self, key: Key, choice: Choice | None) -> str:
        known = self._judge.known()
        kernels = duel.kernels_of(key, self._ext)
        if not kernels or (choice is not None and choice.name == LEAVE_TO_MLX):
            return SLOWER
        if not all(known[kernel].ok for kernel in kernels if kernel in known):
            return WRONG
        return UNKNOWN if choice is None else ON_OURS


def _say(seconds: float) -> None:
    print(
        "mlx-nibble compiles its kernels for this GPU, and times new ones against "
        f"MLX's: up to {seconds:.0f} seconds.",
        file=sys.stderr,
        flush=True,
    )


def try_kernels(ext: Any, forms: Iterable[Key]) -> None:
    """Compile and try all kernels of these products, whatever their rows."""
    found: dict[str, None] = {ext.view_kernel: None}
    for form in forms:
        for key in keys_of(form):
            found |= dict.fromkeys(duel.kernels_of(key, ext))
    ext.compile_kernels(list(found))
    ext.trusted(list(found))


_here: list[FirstUse] = []


def here(ext: Any, judge: Verdicts) -> FirstUse:
    """Return the verdicts of this process's GPU."""
    if not _here:
        _here.append(FirstUse(ext, judge))
    return _here[0]

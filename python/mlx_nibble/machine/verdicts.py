"""Which kernels may be used on this machine, remembered in the user's cache folder.

A Metal kernel is compiled by the user's system for the user's GPU, which may be one
that nobody has tested. Its first use there runs a trial (:mod:`trial`). A kernel that
does not compile or is wrong is switched off with a warning. MLX's operation replaces
it. A verdict is valid for the same GPU, system, mlx and mlx-nibble.
"""

from __future__ import annotations

import atexit
import json
import platform
import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble._version import __version__
from mlx_nibble.io.atomic import write_text
from mlx_nibble.io.cache import cache_dir, cache_lock
from mlx_nibble.io.stranger import read_json
from mlx_nibble.machine import trial
from mlx_nibble.machine.trial import Verdict

# 20 times the verdicts of all kernels.
_LARGEST_FILE = 4 << 20


@dataclass(frozen=True)
class Machine:
    """The machine that a verdict is valid for.

    Attributes:
        gpu: Metal's architecture string, such as "applegpu_g14s"; "" without a GPU.
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
        gpu = str(mx.device_info(mx.gpu).get("architecture", ""))
        return cls(gpu, system, mx.__version__, __version__)  # pyright: ignore[reportAttributeAccessIssue]


class Verdicts:
    """The verdicts of one machine: the judge that the extension asks."""

    def __init__(self, machine: Machine, ext: Any) -> None:
        """Read and try nothing yet."""
        self._machine = machine
        self._ext = ext
        self._known: dict[str, Verdict] | None = None

    @property
    def path(self) -> Path:
        """The machine's file."""
        name = "_".join(asdict(self._machine).values())
        return (
            cache_dir() / "self-check" / f"{re.sub('[^A-Za-z0-9.]+', '-', name)}.json"
        )

    def __call__(self, kernel: str) -> bool:
        """Return whether a kernel may be used; try the kernel if that is unknown."""
        if self._known is None:
            self._known = self._load()
        verdict = self._known.get(kernel)
        if verdict is None:
            verdict = trial.check(kernel, self._ext) or Verdict(kernel)
            self.remember([verdict])
        if not verdict.ok:
            warnings.warn(
                f"mlx-nibble does not use its kernel {kernel} on this machine; MLX's "
                f"operation replaces it: {verdict.failure}. `nibble doctor` tries the "
                "kernel again, `nibble doctor --report` writes a report for us.",
                RuntimeWarning,
                stacklevel=2,
            )
        return verdict.ok

    def remember(self, verdicts: Iterable[Verdict]) -> None:
        """Add verdicts to the known ones, in this process and in the cache."""
        new = {verdict.kernel: verdict for verdict in verdicts}
        try:
            with cache_lock("self-check"):
                self._known = self._load() | (self._known or {}) | new
                self._save(self._known)
        except OSError:
            # Without a cache, every process runs its own trials.
            self._known = (self._known or {}) | new

    def _load(self) -> dict[str, Verdict]:
        try:
            stored = read_json(self.path, "self-check", _LARGEST_FILE)
            return {
                kernel: Verdict(kernel, None if failure is None else str(failure))
                for kernel, failure in stored["failures"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # missing or damaged: the next verdict rewrites the file

    def _save(self, verdicts: dict[str, Verdict]) -> None:
        stored = {
            "machine": asdict(self._machine),
            # By kernel; null for a kernel that may be used.
            "failures": {k: v.failure for k, v in sorted(verdicts.items())},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(stored, indent=1))


def install(ext: Any) -> None:
    """Have the extension try every kernel before its first use."""
    if not mx.metal.is_available():
        return
    ext.set_judge(Verdicts(Machine.here(), ext))
    # The extension outlives the interpreter: drop its reference to the judge.
    atexit.register(ext.set_judge, None)

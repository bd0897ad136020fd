"""The programs of the CPU backend's runner: this machine's, and Arm's for qemu-user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.simt import toolchain
from tests.simt.amount import FULL
from tests.simt.toolchain import ROOT

CACHE = ROOT / "build" / "cpu-aarch64"
ARM_TARGET = ["-target", "aarch64-linux-musl"]
# clang takes 53 s of processor time for a file of kernels with -O1, and 5 s with -O0
# (one core of an Intel Xeon). Without optimisation zig adds checks that have a library.
ARM_OPTIMISATION = ["-O1"] if FULL else ["-O0", "-fno-sanitize=all"]
# Options by file, as in cmake/cpu.cmake.
ARM_FLAGS = {
    "kernels_neon_dotprod": ["-mcpu=generic+v8_2a+dotprod"],
    "kernels_neon_i8mm": ["-mcpu=generic+v8_2a+dotprod+i8mm"],
}
ARM_SOURCES = [
    *(
        path
        for path in (ROOT / "csrc" / "cpu").glob("*.cpp")
        if "_avx" not in path.stem and "_amx" not in path.stem
    ),
    ROOT / "csrc" / "core" / "cpu_planner.cpp",
    ROOT / "tests" / "cpu" / "runner.cpp",
]


def native() -> list[str] | None:
    """Return the command of this machine's runner; None if it was not installed."""
    if other := os.environ.get("NIBBLE_CPU_RUNNER"):
        return [other]
    from mlx_nibble import _native

    if _native.ext is None or _native.ext.__file__ is None:
        return None
    path = Path(_native.ext.__file__).parents[1] / "cpu_runner"
    return [str(path)] if path.exists() else None


def qemu() -> str | None:
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def arm(emulator: str) -> list[str]:
    """Return the command of Arm's runner, and cross-compile it first if necessary."""
    zig = toolchain.kernel_compiler()[0]
    headers = [*(ROOT / "csrc").glob("c*/*.h")]
    common = [toolchain.digest_files(headers), toolchain.versions()]
    flags = [*ARM_TARGET, *ARM_OPTIMISATION, "-std=c++20", f"-I{ROOT}"]

    def compile_one(source: Path) -> Path:
        own = [*flags, *ARM_FLAGS.get(source.stem, [])]
        key = toolchain.digest([*common, source.read_bytes(), *own])
        compiled = CACHE / f"{source.stem}-{key}.o"
        if not compiled.exists():
            new = compiled.with_suffix(".new")
            toolchain.run([zig, "c++", *own, "-c", source, "-o", new])
            new.rename(compiled)
        return compiled

    with _locked():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sorted(ARM_SOURCES)))
        program = CACHE / f"runner-{toolchain.digest(map(str, objects))}"
        if not program.exists():
            new = program.with_suffix(".new")
            toolchain.run([zig, "c++", *ARM_TARGET, *objects, "-o", new])
            new.rename(program)
    return [emulator, "-cpu", "max", str(program)]


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""Builds kernels and the executor, and keeps them under build/simt by content.

A file there is named after a hash of all its inputs, so nothing is ever stale and a
second run builds nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import toolchain
from .source import Unit, translate
from .toolchain import BENCH, CACHE, ROOT

JOBS = os.cpu_count() or 1


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """Return `path`, made first if it is missing; one process makes it, others wait."""
    if not path.exists():
        with _locked(path):
            if not path.exists():
                new = path.with_suffix(".new")
                make(new)
                new.rename(path)
    return path


@functools.cache
def executor() -> Path:
    """Return the shared library of executor/ and the project's core."""
    code = [*BENCH.glob("executor/*.cpp"), *ROOT.glob("csrc/core/**/*.cpp")]
    headers = [
        *BENCH.glob("executor/*.h"),
        *ROOT.glob("csrc/core/**/*.h"),
        ROOT / "kernels" / "shared.h",
    ]
    flags = ["-std=c++20", "-O2", "-g1", "-Wall", "-Wextra", "-fPIC"]
    flags += ["-fvisibility=hidden", f"-I{ROOT}"]
    common = [toolchain.digest_files(headers), toolchain.versions(), *flags]

    def compile_one(file: Path) -> Path:
        def make(new: Path) -> None:
            toolchain.run([toolchain.host_compiler(), *flags, "-c", file, "-o", new])

        key = toolchain.digest([*common, file.read_bytes()])
        return _made(CACHE / f"{file.stem}-{key}.o", make)

    def make(new: Path) -> None:
        link = [toolchain.host_compiler(), "-shared", *objects, "-o", new]
        toolchain.run([*link, "-ldl"])

    with ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(compile_one, sorted(code)))
    return _made(CACHE / f"executor-{toolchain.digest(map(str, objects))}.so", make)


def compile_unit(unit: Unit, *, instrumented: bool = False) -> Path:
    """Return a shared library with the unit's kernels."""
    flags = [*toolchain.LANGUAGE, *toolchain.WARNINGS, *toolchain.CODE]
    flags += toolchain.INSTRUMENTED if instrumented else []
    key = toolchain.digest([unit.text, headers(), toolchain.versions(), *flags])

    def make(new: Path) -> None:
        text = new.with_suffix(".cl")
        compiled = new.with_suffix(".o")
        text.write_text(unit.text)
        command = [*toolchain.kernel_compiler(), *flags, "-c", text, "-o", compiled]
        toolchain.run(command)
        link = [toolchain.host_compiler(), "-shared", compiled, "-o", new, "-lm"]
        toolchain.run(link)
        compiled.unlink()

    kind = "watched" if instrumented else "plain"
    return _made(CACHE / f"{kind}-{key}.so", make)


def optimised(text: str, inline: bool = True) -> str:
    """Return a Metal source as LLVM's optimiser at -O2 leaves it, loops unrolled.

    Values that lanes exchange stay in registers, as on a GPU. The result shows what a
    GPU's compiler is given: which arrays became registers, and which calls are left.

    Args:
        text: A flat Metal source.
        inline: Whether NIBBLE_INLINE means what it means on a Mac.
    """
    unit = translate(text, unroll=True)
    command = [*toolchain.kernel_compiler(), *toolchain.LANGUAGE, *toolchain.WARNINGS]
    macro = "inline __attribute__((always_inline))" if inline else "inline"
    command += ["-O2", f"-DNIBBLE_INLINE={macro}", "-DSIMT_REGISTERS"]
    command += ["-mavx2", "-mf16c", "-mfma", "-S", "-emit-llvm", "-o", "-", "-"]
    return toolchain.run(command, text=unit.text)


_EVERYTHING_INLINE = "inline __attribute__((always_inline))"


def for_counting(unit: Unit) -> str:
    """Return a unit as LLVM's optimiser leaves it, to count its instructions.

    Exchanges between lanes and 8x8 products stay calls of functions.
    """
    command = [*toolchain.kernel_compiler(), *toolchain.LANGUAGE, *toolchain.WARNINGS]
    command += ["-O2", f"-DNIBBLE_INLINE={_EVERYTHING_INLINE}"]
    command += ["-DSIMT_HARDWARE=inline __attribute__((noinline))", *toolchain.SCALAR]
    command += [
        "-mavx2",
        "-mf16c",
        "-mfma",
        "-fPIC",
        "-S",
        "-emit-llvm",
        "-o",
        "-",
        "-",
    ]
    return toolchain.run(command, text=unit.text)


def compile_counted(text: str) -> Path:
    """Return a shared library of LLVM's code."""

    def make(new: Path) -> None:
        code, compiled = new.with_suffix(".ll"), new.with_suffix(".o")
        code.write_text(text)
        flags = ["--target=x86_64-linux-gnu", "-O1", "-fPIC", "-Wno-override-module"]
        command = [*toolchain.kernel_compiler(), *flags, "-c", code, "-o", compiled]
        toolchain.run(command)
        toolchain.run([toolchain.host_compiler(), "-shared", compiled, "-o", new])
        compiled.unlink()

    key = toolchain.digest([text, toolchain.versions()])
    return _made(CACHE / f"counted-{key}.so", make)


def check_syntax(unit: Unit) -> None:
    """Raise CompileError if the strict front end refuses the unit."""
    command = [*toolchain.kernel_compiler(), *toolchain.LANGUAGE]
    command += [*toolchain.WARNINGS, "-fsyntax-only", "-"]
    toolchain.run(command, text=unit.text)


@functools.cache
def headers() -> str:
    """Return the name of the content of include/, an input of every unit."""
    return toolchain.digest_files(
        p for p in (BENCH / "include").rglob("*") if p.is_file()
    )

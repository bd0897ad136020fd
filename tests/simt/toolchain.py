"""The two compilers: clang from the ziglang wheel for kernels, c++ for the rest."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent.parent
CACHE = ROOT / "build" / "simt"

# C++ for OpenCL is C++17 with Metal's address spaces as types, and on x86 its
# object files are ordinary ones. No double: Metal has none.
LANGUAGE = [
    "--target=x86_64-linux-gnu",
    "-x",
    "clcpp",
    "-cl-std=clc++2021",
    "-cl-no-stdinc",
    "-cl-single-precision-constant",
    "-Xclang",
    "-cl-ext=-cl_khr_fp64,-__opencl_c_fp64,+cl_khr_fp16",
    f"-I{BENCH / 'include'}",
]
# Metal's own attributes mean nothing to clang, and its `constant` is const already.
WARNINGS = ["-Werror", "-Wno-unknown-attributes", "-Wno-duplicate-decl-specifier"]

# Half arithmetic that rounds at each step and no contraction that the text does
# not ask for: the strictest reading of what a GPU may compute.
CODE = [
    "-O1",
    "-mavx2",
    "-mf16c",
    "-mfma",
    "-ffp-contract=off",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-fPIC",
    "-gline-tables-only",
    "-fdebug-compilation-dir=.",
    "-fsanitize=alignment",
    "-fsanitize-trap=alignment",
    "-fno-sanitize-merge=alignment",
]

# Accesses are reported to the executor's __tsan_* functions (monitor.cpp).
INSTRUMENTED = [
    "-fsanitize=thread",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-fno-vectorize",
    "-fno-slp-vectorize",
]


class CompileError(Exception):
    """A compiler refused; the message is what it said."""


def run(command: Sequence[str | Path], text: str | None = None) -> str:
    """Standard output of `command`; CompileError if it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(done.stderr.strip() or done.stdout.strip())
    return done.stdout


@functools.cache
def kernel_compiler() -> list[str]:
    import ziglang

    return [str(Path(ziglang.__file__).parent / "zig"), "clang"]


@functools.cache
def host_compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("c++")
    if not found:
        raise CompileError("no c++ compiler on the PATH")
    return found


@functools.cache
def versions() -> str:
    """What, beside the sources and the flags, decides what comes out."""
    return run([*kernel_compiler(), "--version"]) + run([host_compiler(), "--version"])


def digest(parts: Iterable[str | bytes]) -> str:
    """A short name for everything that goes into a build."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()[:20]


def digest_files(paths: Iterable[Path]) -> str:
    return digest(
        part
        for path in sorted(paths)
        for part in (str(path.relative_to(ROOT)), path.read_bytes())
    )

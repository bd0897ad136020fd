"""Runs the two compilers: clang of the ziglang wheel for kernels, c++ for the rest."""

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

# C++ for OpenCL is C++17 with Metal's address spaces as types. On x86 it compiles to
# ordinary object files. Metal has no double, so it is disabled.
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
# clang does not know Metal's attributes, and Metal's `constant` is const already.
WARNINGS = ["-Werror", "-Wno-unknown-attributes", "-Wno-duplicate-decl-specifier"]

# Half arithmetic rounds at each step, and nothing is contracted without an explicit
# fma: the strictest of the results that a GPU may compute.
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

# A lane's code has scalars only, as a GPU's.
SCALAR = ["-fno-vectorize", "-fno-slp-vectorize"]

# Each access calls a __tsan_* function of the executor (monitor.cpp).
INSTRUMENTED = [
    "-fsanitize=thread",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    *SCALAR,
]


class CompileError(Exception):
    """A compiler failed; the message is its output."""


def run(command: Sequence[str | Path], text: str | None = None) -> str:
    """Return the standard output of `command`; raise CompileError if it fails."""
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
        raise CompileError(
            "[simt] a C++ compiler is required as CXX or c++ on the PATH"
        )
    return found


@functools.cache
def versions() -> str:
    """Return the compilers' versions, an input of every build."""
    return run([*kernel_compiler(), "--version"]) + run([host_compiler(), "--version"])


def digest(parts: Iterable[str | bytes]) -> str:
    """Return a short name for all inputs of a build."""
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

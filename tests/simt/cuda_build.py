"""Builds a bundle for a machine with an NVIDIA GPU: python -m tests.simt.cuda_build DIR

The bundle holds the kernels as machine code, their operands and the exact results.
It also holds cuda_run.py, which needs only Python, numpy and the driver. To build it
takes the package nvidia-cuda-nvrtc, but no GPU and no CUDA toolkit.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from . import cases, mlx_cases, mlx_kernels, numbers, plans, problems, toolchain
from .plans import Problem
from .source import INSTANCE, Unit, translate_for_cuda
from .toolchain import BENCH, CompileError

ARCHITECTURE = "sm_90"  # H100 and H200
_OPTIONS = (
    f"--gpu-architecture={ARCHITECTURE}",
    "--std=c++17",
    "--device-as-default-execution-space",
    "--generate-line-info",
    # Warnings about a repeated const (Metal's constant is const) and Metal's pragmas.
    "--diag-suppress=83,161",
    f"-I{BENCH / 'include'}",
)
# Numbers of rows to time, as in decoding, speculation and prefill, and the kernels
# that MLX's dispatch may choose for each. The matrix fits into any GPU's cache,
# because the times compare kernels with each other.
_TIMED = {
    1: ("affine_qmv_fast",),
    8: ("affine_qmv_fast", "affine_qmv_wide", "affine_qmm_t"),
    32: ("affine_qmv_wide", "affine_qmm_t"),
    256: ("affine_qmm_t",),
}
_TIMED_SIZE = 2048


def nvrtc() -> ctypes.CDLL | None:
    """Return NVIDIA's compiler library; None if its wheel is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for library in Path(folder).glob("*/lib/libnvrtc.so.*"):
            return ctypes.CDLL(str(library))
    return None


def compile_text(text: str, options: Sequence[str]) -> tuple[bytes, str]:
    """Return the machine code of a text, and the compiler's log.

    Raises:
        CompileError: NVRTC is missing or fails; the message is its log.
    """
    lib = nvrtc()
    if not lib:
        raise CompileError("the package nvidia-cuda-nvrtc is not installed")
    program = ctypes.c_void_p()
    source = text.encode()
    lib.nvrtcCreateProgram(ctypes.byref(program), source, b"unit.cu", 0, None, None)
    flags = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    failed = lib.nvrtcCompileProgram(program, len(options), flags)

    def fetch(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        getattr(lib, f"nvrtcGet{what}")(program, data)
        return data.raw

    log = fetch("ProgramLog").decode(errors="replace")
    cubin = b"" if failed else fetch("CUBIN")
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise CompileError(log)
    return cubin, log


def compile_cubin(unit: Unit) -> bytes:
    """Return the machine code of a translated unit; see :func:`compile_text`."""
    return compile_text(unit.text, _OPTIONS)[0]


def unit_of(kernels: list[str]) -> Unit:
    """Return one unit with these planned kernels, which share a header."""
    sources = [plans.kernel_source(kernel) for kernel in kernels]
    header = INSTANCE.sub("", sources[0])
    lines = [match[0] for text in sources for match in INSTANCE.finditer(text)]
    return translate_for_cuda(header + "\n".join(lines))


def mlx_unit(instances: set[tuple[str, str]]) -> Unit:
    """Return a unit with instances of MLX's kernels; see mlx_kernels.instance()."""
    return translate_for_cuda(mlx_kernels.text(instances))


@dataclass(frozen=True)
class Entry:
    """A case of the bundle, with its instance if the kernel is MLX's."""

    case: cases.Case
    instance: tuple[str, str] | None = None
    timed: bool = False

    @property
    def cubin(self) -> str:
        kernel = self.case.launch.kernel
        return f"mlx_{kernel}" if self.instance else plans.unit_name(kernel)


def entries() -> Iterator[Entry]:
    """Yield every kernel of the types and the format that most checkpoints have."""
    for unit in plans.unit_names():
        if unit.endswith(("_f16_f16_b4", "_bf16_bf16_b4")):
            # NVRTC takes ten seconds for some.
            kernels = [
                kernel
                for kernel in plans.kernels_of_unit(unit)
                if "_g64" in kernel and "_sym" not in kernel
            ]
            yield from map(Entry, problems.of_unit(unit, kernels))
    for dtype in ("float16", "bfloat16"):
        # The last problem of each kernel.
        for kernel, p in dict(mlx_cases.of_format(dtype, 4, 64)).items():
            yield _of_mlx(kernel, p)
    for M, theirs in _TIMED.items():
        p = Problem(M=M, N=_TIMED_SIZE, K=_TIMED_SIZE)
        for launch in chain.from_iterable(plans.candidates(p)):
            yield Entry(cases.matmul(p, launch), timed=True)
        for kernel in theirs:
            yield _of_mlx(kernel, p, timed=True)


def _of_mlx(kernel: str, p: Problem, timed: bool = False) -> Entry:
    instance = mlx_kernels.instance(kernel, p)
    return Entry(mlx_cases.case(kernel, p), instance, timed)


def build(folder: Path) -> None:
    """Write the bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list(entries())
    _write_cubins(folder, found)
    # Named by content, so that kernels to compare share their arrays.
    arrays: dict[str, np.ndarray] = {}

    def stored(array: np.ndarray) -> str:
        name = toolchain.digest([array.tobytes(), array.dtype.str, str(array.shape)])
        arrays[name] = array
        return name

    launches = []
    for entry in found:
        case, launch = entry.case, entry.case.launch
        inputs = {name for name in launch.buffers if name not in case.outputs}
        launches.append(
            {
                "kernel": launch.kernel,
                "cubin": f"{entry.cubin}.cubin",
                "threadgroups": launch.threadgroups,
                "threads": launch.threads,
                "buffers": launch.buffers,
                "inputs": {name: stored(case.operands[name]) for name in inputs},
                "exact": stored(case.exact),
                "allowed": stored(case.allowed),
                "params": launch.params.hex(),
                "threadgroup_bytes": launch.threadgroup_bytes,
                "outputs": case.outputs,
                "dtype": case.dtype,
                "itemsize": numbers.STORAGE[case.dtype].itemsize,
                "timed": entry.timed,
            }
        )
    np.savez_compressed(folder / "arrays.npz", **arrays)  # pyright: ignore[reportArgumentType]
    (folder / "launches.json").write_text(json.dumps(launches))
    shutil.copy(BENCH / "cuda_run.py", folder / "cuda_run.py")


def _write_cubins(folder: Path, found: list[Entry]) -> None:
    by_cubin: dict[str, list[Entry]] = {}
    for entry in found:
        by_cubin.setdefault(entry.cubin, []).append(entry)
    for cubin, its in by_cubin.items():
        instances = {entry.instance for entry in its if entry.instance}
        kernels = list(dict.fromkeys(entry.case.launch.kernel for entry in its))
        unit = mlx_unit(instances) if instances else unit_of(kernels)
        (folder / f"{cubin}.cubin").write_bytes(compile_cubin(unit))
        print(f"{cubin}: {len(unit.kernels)} kernels", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simt.cuda_build")
    parser.add_argument("folder", type=Path)
    build(parser.parse_args().folder)


if __name__ == "__main__":
    main()

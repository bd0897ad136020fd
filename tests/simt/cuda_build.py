"""Builds a bundle for a machine with an NVIDIA GPU: python -m tests.simt.cuda_build DIR

The bundle holds the kernels as machine code, problems, and what must come out;
cuda_run.py beside it needs Python, numpy and the driver, and nothing of this project.
Needs the package nvidia-cuda-nvrtc; no GPU and no CUDA toolkit.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import cases, numbers, plans
from .plans import Problem
from .source import INSTANCE, Unit, translate_for_cuda
from .toolchain import BENCH, CompileError

ARCHITECTURE = "sm_90"  # H100 and H200
_OPTIONS = (
    f"--gpu-architecture={ARCHITECTURE}",
    "--std=c++17",
    "--device-as-default-execution-space",
    "--fmad=false",
    "--generate-line-info",
    f"-I{BENCH / 'include'}",
)
# What is timed: rows as in decoding, speculation and prefill, of a matrix that fits
# into any GPU's cache, for kernels are compared with each other.
_TIMED_ROWS = (1, 8, 32, 256)
_TIMED_SIZE = 2048


def nvrtc() -> ctypes.CDLL | None:
    """NVIDIA's compiler library, from its wheel; None if that is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for library in Path(folder).glob("*/lib/libnvrtc.so.*"):
            return ctypes.CDLL(str(library))
    return None


def compile_cubin(unit: Unit) -> bytes:
    """Machine code of a translated unit.

    Raises:
        CompileError: NVRTC is not there, or refuses; the message is its log.
    """
    lib = nvrtc()
    if not lib:
        raise CompileError("the package nvidia-cuda-nvrtc is not installed")
    program = ctypes.c_void_p()
    source = unit.text.encode()
    lib.nvrtcCreateProgram(ctypes.byref(program), source, b"unit.cu", 0, None, None)
    flags = (ctypes.c_char_p * len(_OPTIONS))(*(o.encode() for o in _OPTIONS))
    failed = lib.nvrtcCompileProgram(program, len(_OPTIONS), flags)

    def fetch(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        getattr(lib, f"nvrtcGet{what}")(program, data)
        return data.raw

    if failed:
        raise CompileError(fetch("ProgramLog").decode(errors="replace"))
    return fetch("CUBIN")


def unit_of(kernels: list[str]) -> Unit:
    """One unit with these planned kernels, all of one header."""
    sources = [plans.kernel_source(kernel) for kernel in kernels]
    header = INSTANCE.sub("", sources[0])
    lines = [match[0] for text in sources for match in INSTANCE.finditer(text)]
    return translate_for_cuda(header + "\n".join(lines))


def checked() -> Iterator[cases.Case]:
    """Every kernel of the types and the format that most checkpoints have."""
    for unit in plans.unit_names():
        if unit.endswith(("_f16_f16_b4", "_bf16_bf16_b4")):
            for case in cases.of_unit(unit):
                # NVRTC takes ten seconds for some.
                name = case.launch.kernel
                if "_g64" in name and "_sym" not in name:
                    yield case


def timed() -> Iterator[cases.Case]:
    for M in _TIMED_ROWS:
        p = Problem(M=M, N=_TIMED_SIZE, K=_TIMED_SIZE)
        for (launch,) in plans.candidates(p):
            yield cases.matmul(p, launch)


def build(folder: Path) -> None:
    """Write the bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    arrays: dict[str, np.ndarray] = {}
    found = [(case, False) for case in checked()] + [(case, True) for case in timed()]
    for number, (case, is_timed) in enumerate(found):
        launch = case.launch
        for name in launch.buffers:
            if name != "out":
                arrays[f"{number}_{name}"] = case.operands[name]
        arrays[f"{number}_exact"] = case.exact
        arrays[f"{number}_allowed"] = case.allowed
        entries.append(
            {
                "kernel": launch.kernel,
                "cubin": f"{plans.unit_name(launch.kernel)}.cubin",
                "threadgroups": launch.threadgroups,
                "threads": launch.threads,
                "buffers": launch.buffers,
                "params": launch.params.hex(),
                "threadgroup_bytes": launch.threadgroup_bytes,
                "shape": case.exact.shape,
                "dtype": case.dtype,
                "itemsize": numbers.STORAGE[case.dtype].itemsize,
                "timed": is_timed,
            }
        )
    by_cubin: dict[str, list[str]] = {}
    for entry in entries:
        kernels = by_cubin.setdefault(entry["cubin"], [])
        if entry["kernel"] not in kernels:
            kernels.append(entry["kernel"])
    for cubin, kernels in by_cubin.items():
        (folder / cubin).write_bytes(compile_cubin(unit_of(kernels)))
        print(f"{cubin}: {len(kernels)} kernels", flush=True)
    np.savez_compressed(folder / "arrays.npz", **arrays)  # pyright: ignore[reportArgumentType]
    (folder / "launches.json").write_text(json.dumps(entries))
    shutil.copy(BENCH / "cuda_run.py", folder / "cuda_run.py")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simt.cuda_build")
    parser.add_argument("folder", type=Path)
    build(parser.parse_args().folder)


if __name__ == "__main__":
    main()

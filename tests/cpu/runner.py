"""The CPU backend as a process: this machine's, or Arm's under qemu-user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.oracle import Weights
from tests.simt import numbers, toolchain
from tests.simt.toolchain import ROOT

DTYPES = ["float32", "float16", "bfloat16"]
CACHE = ROOT / "build" / "cpu-aarch64"
ARM_TARGET = ["-target", "aarch64-linux-musl"]
# By file; as cmake/cpu.cmake has it.
ARM_FLAGS = {
    "kernels_neon_dotprod": ["-mcpu=generic+v8_2a+dotprod"],
    "kernels_neon_i8mm": ["-mcpu=generic+v8_2a+dotprod+i8mm"],
}
ARM_SOURCES = [
    *(
        path
        for path in (ROOT / "csrc" / "cpu").glob("*.cpp")
        if "_avx" not in path.stem
    ),
    ROOT / "tests" / "cpu" / "runner.cpp",
]


@dataclass(frozen=True)
class Types:
    """Of x and the result, and of scales and biases."""

    dtype: str
    scale_dtype: str


class Runner:
    """A process of the backend. `isas` are the instruction sets it could use.

    All values are of the types that they are said to be of, bfloat16 as float32.
    """

    def __init__(self, command: list[str], isa: str = "", threads: int = 2):
        self._process = subprocess.Popen(
            command,
            env={
                **os.environ,
                "NIBBLE_CPU_ISA": isa,
                "NIBBLE_NUM_THREADS": str(threads),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.isas = self._process.stdout.readline().decode().split()

    def close(self) -> int:
        """Ends the process; its exit status."""
        self._process.communicate()
        return self._process.returncode

    def matmul(
        self,
        x: np.ndarray,
        w: Weights,
        types: Types,
        *,
        transpose: bool = True,
        batch: tuple[int, int, int] = (1, 1, 1),
        int8: bool = False,
        symmetric: bool = False,
    ) -> np.ndarray:
        """x [size, M, K or N] times w [count, N, K]: [size, M, N or K]."""
        size, M, _ = x.shape
        N, K = w.scales.shape[-2], w.scales.shape[-1] * w.group_size
        fields = [int(int8), M, N, K, *batch]
        fields += self._format(w, types, symmetric) + [int(transpose)]
        shape = (size, M, N if transpose else K)
        return self._ask(fields, w, x, types, shape)

    def dequantize(self, w: Weights, types: Types) -> np.ndarray:
        """w_hat [N, K] of w [N, K]."""
        N, K = w.scales.shape[-2], w.scales.shape[-1] * w.group_size
        fields = [2, 1, N, K, 1, 1, 1, *self._format(w, types, False), 1]
        return self._ask(fields, w, np.empty(0), types, (N, K))

    @staticmethod
    def _format(w: Weights, types: Types, symmetric: bool) -> list[int]:
        dtypes = [DTYPES.index(types.dtype), DTYPES.index(types.scale_dtype)]
        return [*dtypes, w.bits, w.group_size, int(symmetric)]

    def _ask(
        self,
        fields: list[int],
        w: Weights,
        x: np.ndarray,
        types: Types,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        arrays = [
            np.ascontiguousarray(w.words).tobytes(),
            numbers.encode(w.scales, types.scale_dtype).tobytes(),
            numbers.encode(w.biases, types.scale_dtype).tobytes(),
            numbers.encode(x, types.dtype).tobytes(),
        ]
        stored = numbers.STORAGE[types.dtype]
        out = int(np.prod(shape)) * stored.itemsize
        sizes = [*map(len, arrays), out]
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(struct.pack("18i", *fields, *sizes) + b"".join(arrays))
        stdin.flush()
        data = stdout.read(out)
        assert len(data) == out, "the backend ended"
        values = np.frombuffer(data, stored).reshape(shape)
        return numbers.decode(values, types.dtype)


def native() -> list[str] | None:
    """The command of this machine's runner; None if it was not installed."""
    import mlx_nibble._ext

    path = Path(mlx_nibble._ext.__file__).parent / "cpu_runner"
    return [str(path)] if path.exists() else None


def qemu() -> str | None:
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def arm(emulator: str) -> list[str]:
    """The command of Arm's runner, cross-compiled first if need be."""
    zig = toolchain.kernel_compiler()[0]
    headers = [*(ROOT / "csrc").glob("c*/*.h")]
    common = [toolchain.digest_files(headers), toolchain.versions()]
    flags = [*ARM_TARGET, "-std=c++20", "-O1", f"-I{ROOT}"]

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

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

from tests.simt import numbers, toolchain
from tests.simt.toolchain import ROOT
from tests.support.oracle import Weights

# In the orders of runner.cpp.
OPERATIONS = ["matmul", "dequantize", "swiglu", "gather", "gather_swiglu"]
ARRAYS = ["w", "scales", "biases", "up_w", "up_scales", "up_biases"]
ARRAYS += ["x", "bias", "residual", "lhs", "rhs"]
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
    ROOT / "csrc" / "core" / "cpu_planner.cpp",
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

    def __init__(self, command: list[str], isa: str = "", threads: int | None = 2):
        self._process = subprocess.Popen(
            command,
            env={
                **os.environ,
                "NIBBLE_CPU_ISA": isa,
                "NIBBLE_NUM_THREADS": str(threads or ""),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.isas = self._process.stdout.readline().decode().split()

    def threads(self) -> int:
        """That the process has now."""
        return len(os.listdir(f"/proc/{self._process.pid}/task"))

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
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        int8: bool = False,
        symmetric: bool = False,
        packed: bool = False,
    ) -> np.ndarray:
        """x [size, M, K or N] times w [count, N, K]: [size, M, N or K]."""
        size, M, _ = x.shape
        flags = (symmetric, transpose, packed)
        form = self._form("matmul", w, types, M, batch, int8, *flags)
        N, K = _shape(w)
        shape = (size, M, N if transpose else K)
        arrays = {"x": x, "bias": bias, "residual": residual}
        return self._ask(form, {"": w}, arrays, types, shape)

    def swiglu(
        self,
        x: np.ndarray,
        gate: Weights,
        up: Weights,
        types: Types,
        *,
        batch: tuple[int, int, int] = (1, 1, 1),
        int8: bool = False,
        packed: bool = False,
    ) -> np.ndarray:
        """silu of x [size, M, K] times gate [count, N, K], times that of up."""
        size, M, _ = x.shape
        form = self._form("swiglu", gate, types, M, batch, int8, packed=packed)
        weights = {"": gate, "up_": up}
        return self._ask(form, weights, {"x": x}, types, (size, M, _shape(gate)[0]))

    def gather(
        self,
        x: np.ndarray,
        w: Weights,
        lhs: np.ndarray,
        rhs: np.ndarray,
        types: Types,
        *,
        up: Weights | None = None,
        transpose: bool = True,
        int8: bool = False,
        symmetric: bool = False,
        packed: bool = False,
    ) -> np.ndarray:
        """x[lhs] times w[rhs], or SwiGLU of w and up: [B, M, N or K]."""
        rows, M, _ = x.shape
        batch = (len(lhs), len(w.words), rows)
        kind = "gather" if up is None else "gather_swiglu"
        flags = (symmetric, transpose, packed)
        form = self._form(kind, w, types, M, batch, int8, *flags)
        N, K = _shape(w)
        weights = {"": w} if up is None else {"": w, "up_": up}
        arrays = {"x": x, "lhs": lhs, "rhs": rhs}
        shape = (len(lhs), M, N if transpose else K)
        return self._ask(form, weights, arrays, types, shape)

    def dequantize(self, w: Weights, types: Types) -> np.ndarray:
        """w_hat [N, K] of w [N, K]."""
        form = self._form("dequantize", w, types, 1, (1, 1, 1))
        return self._ask(form, {"": w}, {}, types, _shape(w))

    @staticmethod
    def _form(
        kind: str,
        w: Weights,
        types: Types,
        M: int,
        batch: tuple[int, int, int],
        int8: bool = False,
        symmetric: bool = False,
        transpose: bool = True,
        packed: bool = False,
    ) -> list[int]:
        dtypes = [DTYPES.index(types.dtype), DTYPES.index(types.scale_dtype)]
        flags = [int(symmetric), int(transpose), int(packed)]
        form = [w.bits, w.group_size, *flags]
        return [
            OPERATIONS.index(kind),
            int(int8),
            M,
            *_shape(w),
            *batch,
            *dtypes,
            *form,
        ]

    def _ask(
        self,
        form: list[int],
        weights: dict[str, Weights],
        values: dict[str, np.ndarray | None],
        types: Types,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        data = dict.fromkeys(ARRAYS, b"")
        for prefix, w in weights.items():
            data[f"{prefix}w"] = np.ascontiguousarray(w.words).tobytes()
            for name, a in (("scales", w.scales), ("biases", w.biases)):
                encoded = numbers.encode(a, types.scale_dtype)
                data[f"{prefix}{name}"] = encoded.tobytes()
        for name, a in values.items():
            if a is not None:
                index = np.issubdtype(a.dtype, np.integer)
                stored = a if index else numbers.encode(a, types.dtype)
                data[name] = stored.tobytes()
        stored = numbers.STORAGE[types.dtype]
        out = int(np.prod(shape)) * stored.itemsize
        sizes = [*(len(data[name]) for name in ARRAYS), out]
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        header = struct.pack(f"{len(form) + len(sizes)}i", *form, *sizes)
        stdin.write(header + b"".join(data.values()))
        stdin.flush()
        answer = stdout.read(out)
        assert len(answer) == out, "the backend ended"
        return numbers.decode(np.frombuffer(answer, stored).reshape(shape), types.dtype)


def _shape(w: Weights) -> tuple[int, int]:
    """N and K."""
    return w.scales.shape[-2], w.scales.shape[-1] * w.group_size


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

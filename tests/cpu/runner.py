"""Run the CPU backend as a process: this machine's, or Arm's under qemu-user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tests.simt import numbers, toolchain
from tests.simt.amount import FULL
from tests.simt.toolchain import ROOT
from tests.support.oracle import FloatWeights, Weights

# In the orders of runner.cpp.
OPERATIONS = ["matmul", "dequantize", "swiglu", "gather", "gather_swiglu"]
OPERATIONS += ["plan", "plan_gather", "plan_attention"]
OPERATIONS += ["rms_norm", "layer_swiglu", "log_sum_exp", "arg_max", "attention"]
OPERATIONS += ["group_gradients"]
ACTIVATIONS = ["exact", "int16", "int8", "bfloat16", "bfloat16_pair"]
ARRAYS = ["w", "scales", "biases", "up_w", "up_scales", "up_biases"]
ARRAYS += ["x", "bias", "residual", "lhs", "rhs"]
DTYPES = ["float32", "float16", "bfloat16"]
# Modes of floats: the numbers of Mode in format.h, and of Dtype in dtype.h.
FLOAT_MODES = {"mxfp4": (2, 3), "nvfp4": (3, 4), "mxfp8": (4, 3)}
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


@dataclass(frozen=True)
class Profile:
    """CpuProfile of csrc/core/cpu_plan.h."""

    threads: int
    few_rows: int
    tile_rows: int
    packed_rows: int = 3
    packed_int8_rows: int = 32
    packed_int16_rows: int = 32
    int16: bool = False
    bfloat16: bool = False


@dataclass(frozen=True)
class KernelPlan:
    """CpuKernelPlan of csrc/core/cpu_plan.h."""

    activations: int  # an index of ACTIVATIONS
    few_rows: int
    whole_rows: int
    packed_rows: int
    prepared_rows: int


@dataclass(frozen=True)
class Plan(KernelPlan):
    """CpuPlan, and two facts about the candidates for the same problem."""

    block_rows: int
    columns: int
    depth: int
    all_supported: bool
    is_first: bool


@dataclass(frozen=True)
class GatherPlan(KernelPlan):
    """CpuGatherPlan, and the columns in a chunk of a wave."""

    block_rows: int
    wave_rows: int
    chunks: int
    columns: int


@dataclass(frozen=True)
class AttentionPlan:
    """CpuAttentionPlan of csrc/core/cpu_plan.h."""

    positions: int
    blocks: int
    split_keys: int
    splits: int
    chunks: int
    parallel: bool
    few_queries: int


@dataclass(frozen=True)
class Types:
    """The types of x and the result, and of scales and biases."""

    dtype: str
    scale_dtype: str


class Runner:
    """A process of the backend. `isas` are the instruction sets that it could use.

    All values have the types that `Types` names; bfloat16 is passed as float32.
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
        self.isa = isa
        self.isas = self._process.stdout.readline().decode().split()

    def activations(
        self,
        dtype: str,
        int8: bool = False,
        transpose: bool = True,
        int16: bool = False,
    ) -> str:
        """Return what products of this instruction set round x to."""
        if not transpose:
            return "exact"
        x86 = self.isa.startswith(("avx", "amx"))
        halves = x86 and (int16 or dtype != "float32")
        return "int8" if int8 else "int16" if halves else "exact"

    def multiplies_bfloats(self) -> bool:
        """Return whether codes that are floats meet activations in bfloat16."""
        needed = {"amx_bf16", "avx512_fp16", "avx512vbmi"}
        cpu = Path("/proc/cpuinfo")
        flags = cpu.read_text().split() if self.isa == "amx" else []
        return needed <= set(flags)

    def threads(self) -> int:
        """Return the number of threads that the process has now."""
        return len(os.listdir(f"/proc/{self._process.pid}/task"))

    def close(self) -> int:
        """End the process and return its exit status."""
        self._process.communicate()
        return self._process.returncode

    def matmul(
        self,
        x: np.ndarray,
        w: Weights | FloatWeights,
        types: Types,
        *,
        transpose: bool = True,
        batch: tuple[int, int, int] = (1, 1, 1),
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        int8: bool = False,
        int16: bool = False,
        symmetric: bool = False,
        packed: bool = False,
        invariant: bool = False,
    ) -> np.ndarray:
        """Return x [size, M, K or N] times w [count, N, K]: [size, M, N or K].

        Float32 activations become integers only if asked for.
        """
        size, M, _ = x.shape
        flags = (symmetric, transpose, packed, invariant)
        allowed = 2 if int8 else int(int16)
        form = self._form("matmul", w, types, M, batch, allowed, *flags)
        N, K = _shape(w)
        shape = (size, M, N if transpose else K)
        arrays = {"x": x, "bias": bias, "residual": residual}
        return self._ask(form, {"": w}, arrays, types, shape)

    def swiglu(
        self,
        x: np.ndarray,
        gate: Weights | FloatWeights,
        up: Weights | FloatWeights,
        types: Types,
        *,
        batch: tuple[int, int, int] = (1, 1, 1),
        int8: bool = False,
        packed: bool = False,
    ) -> np.ndarray:
        """Return silu(x @ gate) * (x @ up), x [size, M, K], gate [count, N, K]."""
        size, M, _ = x.shape
        allowed = 2 * int(int8)
        form = self._form("swiglu", gate, types, M, batch, allowed, packed=packed)
        weights = {"": gate, "up_": up}
        return self._ask(form, weights, {"x": x}, types, (size, M, _shape(gate)[0]))

    def gather(
        self,
        x: np.ndarray,
        w: Weights | FloatWeights,
        lhs: np.ndarray,
        rhs: np.ndarray,
        types: Types,
        *,
        up: Weights | FloatWeights | None = None,
        transpose: bool = True,
        int8: bool = False,
        symmetric: bool = False,
        packed: bool = False,
    ) -> np.ndarray:
        """Return x[lhs] times w[rhs], or SwiGLU of w and up: [B, M, N or K]."""
        rows, M, _ = x.shape
        batch = (len(lhs), len(w.words), rows)
        kind = "gather" if up is None else "gather_swiglu"
        flags = (symmetric, transpose, packed)
        form = self._form(kind, w, types, M, batch, 2 * int(int8), *flags)
        N, K = _shape(w)
        weights = {"": w} if up is None else {"": w, "up_": up}
        arrays = {"x": x, "lhs": lhs, "rhs": rhs}
        shape = (len(lhs), M, N if transpose else K)
        return self._ask(form, weights, arrays, types, shape)

    def group_gradients(
        self,
        x: np.ndarray,
        dy: np.ndarray,
        w: Weights,
        types: Types,
        *,
        transpose: bool = True,
        batch: tuple[int, int, int] = (1, 1, 1),
        indices: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return the gradients of scales and biases: float32 [2, count, N, groups].

        Args:
            x, w: The operands of `matmul`, or of `gather` if there are indices.
            dy: The gradient of its result.
            types: Types of x and dy, and of scales and biases.
            transpose, batch: Those of the product.
            indices: lhs and rhs.
        """
        data = dict.fromkeys(ARRAYS, b"")
        if indices is not None:
            batch = (len(indices[0]), len(w.words), len(x))
            data["lhs"], data["rhs"] = (a.tobytes() for a in indices)
        M = x.shape[-2]
        form = self._form("group_gradients", w, types, M, batch, transpose=transpose)
        data["w"] = np.ascontiguousarray(w.words).tobytes()
        for name, a in (("x", x), ("residual", dy)):
            data[name] = numbers.encode(a, types.dtype).tobytes()
        shape = (2, *w.scales.shape)
        answer = self._exchange(form, data, 4 * int(np.prod(shape)))
        return np.frombuffer(answer, np.float32).reshape(shape)

    def dequantize(self, w: Weights | FloatWeights, types: Types) -> np.ndarray:
        """Return w_hat [N, K] of w [N, K]."""
        form = self._form("dequantize", w, types, 1, (1, 1, 1))
        return self._ask(form, {"": w}, {}, types, _shape(w))

    def layer(self, name: str, dtype: str, x: np.ndarray, *more: np.ndarray):
        """Return the result of a layer between the products.

        Args:
            name: rms_norm, layer_swiglu, log_sum_exp or arg_max, of x [M, K] and the
                weight [K] or up [M, K]; or attention, causal, of q [heads, M, K], keys
                and values [heads, N, K], with the result [M, heads, K].
            dtype: Type of all arrays.
        """
        *heads, M, K = x.shape
        N = more[0].shape[-2] if name == "attention" else 1
        code = DTYPES.index(dtype)
        form = [OPERATIONS.index(name), 0, M, N, K, *(heads or [1]), 1, 1]
        form += [code, code, 4, 32, 0, 0, 0, 0]
        data = dict.fromkeys(ARRAYS, b"")
        for role, a in zip(("x", "bias", "residual"), (x, *more), strict=False):
            data[role] = numbers.encode(a, dtype).tobytes()
        shapes = {"log_sum_exp": (M,), "arg_max": (M,), "attention": (M, *heads, K)}
        shape = shapes.get(name, x.shape)
        stored = np.dtype("u4") if name == "arg_max" else numbers.STORAGE[dtype]
        answer = self._exchange(form, data, int(np.prod(shape)) * stored.itemsize)
        found = np.frombuffer(answer, stored).reshape(shape)
        return found if name == "arg_max" else numbers.decode(found, dtype)

    def attention(
        self, q: np.ndarray, keys: Weights, values: Weights, types: Types
    ) -> np.ndarray:
        """Return causal attention [M, heads, K] of q [heads, M, K].

        Args:
            q: Queries.
            keys: Quantized keys [heads, N, K].
            values: Quantized values of the same shape and format.
            types: Types of the queries and of scales and biases.
        """
        heads, M, K = q.shape
        form = self._form("attention", keys, types, M, (heads, 1, 1))
        weights = {"": keys, "up_": values}
        return self._ask(form, weights, {"x": q}, types, (M, heads, K))

    def plan(
        self,
        M: int,
        N: int,
        K: int,
        cpu: Profile,
        *,
        transpose: bool,
        int8: bool,
        dtype: str = "float32",
        bits: int = 4,
        mode: int = 0,
        invariant: bool = False,
    ) -> Plan:
        """Return the plan of x [M, K or N] times w [N, K]."""
        flags = {"transpose": transpose, "int8": int8, "dtype": dtype, "bits": bits}
        flags |= {"mode": mode, "invariant": invariant}
        return Plan(*self._plan("plan", Plan, (M, N, K), cpu, **flags))

    def plan_gather(
        self,
        B: int,
        shape: tuple[int, int, int],
        cpu: Profile,
        wave: tuple[int, int, int, int],
        *,
        transpose: bool,
        int8: bool,
        dtype: str = "float32",
    ) -> GatherPlan:
        """Return the plan of B products of M rows; `shape` is (M, N, K).

        Args:
            wave: Groups, rows, rows of the largest group, matrices of sums.
        """
        flags = {"transpose": transpose, "int8": int8, "dtype": dtype}
        return GatherPlan(
            *self._plan("plan_gather", GatherPlan, shape, cpu, wave, B, **flags)
        )

    def plan_attention(self, shape: tuple[int, ...], cpu: Profile) -> AttentionPlan:
        """Return the plan of an AttentionShape."""
        return AttentionPlan(
            *self._plan("plan_attention", AttentionPlan, (1, 1, 32), cpu, shape)
        )

    def _plan(
        self,
        kind: str,
        result: type,
        shape: tuple[int, int, int],
        cpu: Profile,
        more: tuple[int, ...] = (),
        B: int = 1,
        *,
        transpose: bool = True,
        int8: bool = False,
        dtype: str = "float32",
        bits: int = 4,
        mode: int = 0,
        invariant: bool = False,
    ) -> list[int]:
        form = [OPERATIONS.index(kind), 2 * int(int8), *shape, B, 1, 1]
        form += [DTYPES.index(dtype), 0, bits, 32, mode, int(transpose), 0]
        form += [int(invariant)]
        data = dict.fromkeys(ARRAYS, b"")
        data["lhs"] = np.array(astuple(cpu), np.int32).tobytes()
        data["rhs"] = np.array(more, np.int32).tobytes()
        answer = self._exchange(form, data, 4 * len(fields(result)))
        return np.frombuffer(answer, np.int32).tolist()

    @staticmethod
    def _form(
        kind: str,
        w: Weights | FloatWeights,
        types: Types,
        M: int,
        batch: tuple[int, int, int],
        allowed: int = 0,  # an index of ACTIVATIONS
        symmetric: bool = False,
        transpose: bool = True,
        packed: bool = False,
        invariant: bool = False,
    ) -> list[int]:
        dtypes = [DTYPES.index(types.dtype), DTYPES.index(types.scale_dtype)]
        mode = int(symmetric)
        if isinstance(w, FloatWeights):
            mode, dtypes[1] = FLOAT_MODES[w.mode]
        flags = [mode, int(transpose), int(packed), int(invariant)]
        form = [w.bits, w.group_size, *flags]
        return [
            OPERATIONS.index(kind),
            allowed,
            M,
            *_shape(w),
            *batch,
            *dtypes,
            *form,
        ]

    def _ask(
        self,
        form: list[int],
        weights: dict[str, Any],
        values: dict[str, np.ndarray | None],
        types: Types,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        data = dict.fromkeys(ARRAYS, b"")
        for prefix, w in weights.items():
            data[f"{prefix}w"] = np.ascontiguousarray(w.words).tobytes()
            if isinstance(w, FloatWeights):
                data[f"{prefix}scales"] = np.ascontiguousarray(w.scales).tobytes()
                continue
            for name, a in (("scales", w.scales), ("biases", w.biases)):
                encoded = numbers.encode(a, types.scale_dtype)
                data[f"{prefix}{name}"] = encoded.tobytes()
        for name, a in values.items():
            if a is not None:
                index = np.issubdtype(a.dtype, np.integer)
                stored = a if index else numbers.encode(a, types.dtype)
                data[name] = stored.tobytes()
        stored = numbers.STORAGE[types.dtype]
        answer = self._exchange(form, data, int(np.prod(shape)) * stored.itemsize)
        return numbers.decode(np.frombuffer(answer, stored).reshape(shape), types.dtype)

    def _exchange(self, form: list[int], data: dict[str, bytes], out: int) -> bytes:
        """Send a request and return its result of `out` bytes."""
        sizes = [*(len(data[name]) for name in ARRAYS), out]
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        header = struct.pack(f"{len(form) + len(sizes)}i", *form, *sizes)
        stdin.write(header + b"".join(data.values()))
        stdin.flush()
        answer = stdout.read(out)
        assert len(answer) == out, "the backend ended"
        return answer


def _shape(w: Weights | FloatWeights) -> tuple[int, int]:
    """Return N and K."""
    return w.scales.shape[-2], w.scales.shape[-1] * w.group_size


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

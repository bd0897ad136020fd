"""Run the CPU backend as a process: this machine's, or Arm's under qemu-user."""

from __future__ import annotations

import os
import subprocess

import numpy as np

from tests.cpu.request import ARRAYS, Request, Types, allowed, batched, form_of, request
from tests.simt import numbers
from tests.support.oracle import FloatWeights, Weights
from tests.support.tolerance import has_bfloat_tiles


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
        """Return whether products may be those of bfloat16."""
        return self.isa == "amx" and has_bfloat_tiles()

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
        asked = request(
            "matmul",
            types.dtype,
            activations=allowed(int8, int16),
            M=M,
            **batched(*batch),
            **form_of(w, types, symmetric),
            transpose=transpose,
            packed=packed,
            invariant=invariant,
        )
        shape = (size, M, asked.N if transpose else asked.K)
        arrays = {"x": x, "bias": bias, "residual": residual}
        return self._multiply(asked, {"": w}, arrays, types, shape)

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
        asked = request(
            "swiglu",
            types.dtype,
            activations=allowed(int8),
            M=M,
            **batched(*batch),
            **form_of(gate, types),
            packed=packed,
        )
        weights = {"": gate, "up_": up}
        return self._multiply(asked, weights, {"x": x}, types, (size, M, asked.N))

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
        asked = request(
            "gather" if up is None else "gather_swiglu",
            types.dtype,
            activations=allowed(int8),
            M=M,
            **batched(len(lhs), len(w.words), rows),
            **form_of(w, types, symmetric),
            transpose=transpose,
            packed=packed,
        )
        weights = {"": w} if up is None else {"": w, "up_": up}
        arrays = {"x": x, "lhs": lhs, "rhs": rhs}
        shape = (len(lhs), M, asked.N if transpose else asked.K)
        return self._multiply(asked, weights, arrays, types, shape)

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
        data = {"w": np.ascontiguousarray(w.words).tobytes()}
        if indices is not None:
            batch = (len(indices[0]), len(w.words), len(x))
            data["lhs"], data["rhs"] = (a.tobytes() for a in indices)
        for name, a in (("x", x), ("residual", dy)):
            data[name] = numbers.encode(a, types.dtype).tobytes()
        asked = request(
            "group_gradients",
            types.dtype,
            M=x.shape[-2],
            **batched(*batch),
            **form_of(w, types),
            transpose=transpose,
        )
        shape = (2, *w.scales.shape)
        answer = self.ask(asked, data, 4 * int(np.prod(shape)))
        return np.frombuffer(answer, np.float32).reshape(shape)

    def dequantize(self, w: Weights | FloatWeights, types: Types) -> np.ndarray:
        """Return w_hat [N, K] of w [N, K]."""
        asked = request("dequantize", types.dtype, **form_of(w, types))
        return self._multiply(asked, {"": w}, {}, types, (asked.N, asked.K))

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
        sizes = {"M": M, "N": N, "K": K, "batch_size": (heads or [1])[0]}
        asked = request(name, dtype, **sizes)
        shapes = {"log_sum_exp": (M,), "arg_max": (M,), "attention": (M, *heads, K)}
        arrays = dict(zip(("x", "bias", "residual"), (x, *more), strict=False))
        data = _encoded(arrays, dtype)
        if name == "arg_max":
            return np.frombuffer(self.ask(asked, data, 4 * M), np.uint32)
        return self._answer(asked, data, dtype, shapes.get(name, x.shape))

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
        asked = request(
            "attention", types.dtype, M=M, batch_size=heads, **form_of(keys, types)
        )
        weights = {"": keys, "up_": values}
        return self._multiply(asked, weights, {"x": q}, types, (M, heads, K))

    def ask(self, asked: Request, data: dict[str, bytes], out: int) -> bytes:
        """Send a request and return its result of `out` bytes.

        Args:
            asked: The request.
            data: Arrays by their names in ARRAYS; those that it lacks are empty.
            out: The size of the result.
        """
        arrays = [data.get(name, b"") for name in ARRAYS]
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        sizes = [*map(len, arrays), out]
        stdin.write(asked.head(sizes) + b"".join(arrays))
        stdin.flush()
        answer = stdout.read(out)
        assert len(answer) == out, "the backend ended"
        return answer

    def _multiply(
        self,
        asked: Request,
        weights: dict[str, Weights | FloatWeights],
        values: dict[str, np.ndarray | None],
        types: Types,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        """Return the result for weights by their prefixes in ARRAYS, and values."""
        data = _encoded(values, types.dtype)
        for prefix, w in weights.items():
            data[f"{prefix}w"] = np.ascontiguousarray(w.words).tobytes()
            if isinstance(w, FloatWeights):
                data[f"{prefix}scales"] = np.ascontiguousarray(w.scales).tobytes()
                continue
            for name, a in (("scales", w.scales), ("biases", w.biases)):
                encoded = numbers.encode(a, types.scale_dtype)
                data[f"{prefix}{name}"] = encoded.tobytes()
        return self._answer(asked, data, types.dtype, shape)

    def _answer(
        self,
        asked: Request,
        data: dict[str, bytes],
        dtype: str,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        stored = numbers.STORAGE[dtype]
        answer = self.ask(asked, data, int(np.prod(shape)) * stored.itemsize)
        return numbers.decode(np.frombuffer(answer, stored).reshape(shape), dtype)


def _encoded(arrays: dict[str, np.ndarray | None], dtype: str) -> dict[str, bytes]:
    """Return the bytes of the arrays that are given; indices stay integers."""
    return {
        name: (
            a if np.issubdtype(a.dtype, np.integer) else numbers.encode(a, dtype)
        ).tobytes()
        for name, a in arrays.items()
        if a is not None
    }

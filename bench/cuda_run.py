"""Checks and times the kernels of bench.cuda_products, on a GPU.

    cd DIR && python -m bench.cuda_run

Weights are cold: products take turns on copies of the matrix that exceed the cache.
Kernels take turns, too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.cuda_exact import Weights, exact

SHAPES = ((1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336))
ROWS = (1, 2, 8, 16, 32, 48, 64, 96, 128, 256, 512, 1024, 2048)
WARM_UP, REPLAYS = 2, 7
POOL = 280 << 20  # bytes of weights; an H200 has 60 MB of L2 cache
MAX_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
TYPES = {"bf16": (torch.bfloat16, 2.0**-8), "f16": (torch.float16, 2.0**-11)}


class Params(ctypes.Structure):
    """MatmulParams of kernels/shared.h; DequantizeParams are its N and K."""

    _fields_ = [(name, ctypes.c_int) for name in ("M", "N", "K", "count", "epilogue")]


class Kernel:
    """A compiled kernel, with the fields of bench.cuda_products.spec()."""

    kernel: str
    family: str
    dtype: str
    mode: str
    bits: int
    group: int
    bm: int
    bn: int
    threads: int
    shared: int
    file: str = ""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Load the machine code."""
        vars(self).update(spec)
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        code = Path(f"{self.file or self.kernel}.cubin").read_bytes()
        succeed(cuda.cuModuleLoadData(ctypes.byref(module), code))
        name = self.kernel.encode()
        succeed(cuda.cuModuleGetFunction(ctypes.byref(self._function), module, name))
        succeed(cuda.cuFuncSetAttribute(self._function, MAX_SHARED, self.shared))

    def multiply(self, x: torch.Tensor, weights: Weights, y: torch.Tensor) -> None:
        """Compute y = x @ w_hat.T."""
        (M, K), N = x.shape, y.shape[1]
        w, s, b = weights
        grid = (-(-N // self.bn), -(-M // self.bm), 1)
        self.launch(grid, (w, s, b, x, s, s, y), Params(M, N, K, 1, 0))

    def dequantize(self, weights: Weights, w_hat: torch.Tensor) -> None:
        """Compute w_hat."""
        grid = (-(-w_hat.numel() // (8 * self.threads)), 1, 1)
        self.launch(grid, (*weights, w_hat), Params(*w_hat.shape))

    def launch(
        self,
        grid: tuple[int, ...],
        arrays: tuple[torch.Tensor, ...],
        *params: ctypes.Structure,
    ) -> None:
        """Run the kernel with the addresses of `arrays`, then `params`."""
        values = [*(ctypes.c_void_p(a.data_ptr()) for a in arrays), *params]
        pointers = [ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values]
        succeed(
            cuda.cuLaunchKernel(
                self._function,
                *grid,
                *(self.threads, 1, 1),
                self.shared,
                ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
                (ctypes.c_void_p * len(pointers))(*pointers),
                None,
            )
        )


def succeed(error: int) -> None:
    """Raise if a function of the driver failed."""
    if error:
        raise RuntimeError(f"the driver's error {error}")


def weights(k: Kernel, N: int, K: int, count: int) -> Weights:
    """Return random words, scales and biases of `count` matrices."""
    shape = (count, N, K // k.group)
    words = (count, N, K * k.bits // 32)
    w = torch.randint(-(2**31), 2**31, words, device="cuda").to(torch.int32)
    if k.mode == "affine":
        s = (torch.rand(shape, device="cuda") * 0.32 + 0.08) / 2**k.bits
        b = -s * 2 ** (k.bits - 1) + 0.01 * torch.randn(shape, device="cuda")
        return w, s.to(TYPES[k.dtype][0]), b.to(TYPES[k.dtype][0])
    if k.mode == "mxfp8":
        codes = w.view(torch.uint8)
        codes[(codes & 0x7F) == 0x7F] = 1
    low, high = (0, 127) if k.mode == "nvfp4" else (112, 122)
    s = torch.randint(low, high, shape, device="cuda").to(torch.uint8)
    return w, s, s


def worst_error(k: Kernel, M: int, N: int, K: int) -> float:
    """Return the largest error, in units of the bound of docs/reference/numerics.md."""
    words, s, b = weights(k, N, K, 1)
    given = (words[0], s[0], b[0])
    dtype, u = TYPES[k.dtype]
    right, magnitude = exact(k.mode, k.bits, k.group, given)
    if k.family == "dequantize":
        y = torch.full((N, K), math.nan, device="cuda", dtype=dtype)
        k.dequantize(given, y)
        off = 2 * 2**-24 * magnitude
    else:
        x = torch.randn(M, K, device="cuda").to(dtype)
        y = torch.full((M, N), math.nan, device="cuda", dtype=dtype)
        k.multiply(x, given, y)
        right = x.double() @ right.T
        off = 7 * math.sqrt(K + 4) * 2**-24 * (1 + 2**-8)
        off = off * (x.double().abs() @ magnitude.T)
    torch.cuda.synchronize()
    bound = off + u * right.abs() + 2**-24
    return ((y.double() - right).abs() / bound).nan_to_num(nan=math.inf).max().item()


def times_of(
    products: Mapping[str, Callable[[int], object]], count: int
) -> dict[str, list[float]]:
    """Return the median, least and most microseconds of products, in turns.

    Each is captured as a graph of `count` products, whose numbers it gets.
    """
    graphs = {}
    for name, product in products.items():
        product(0)
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for i in range(count):
                product(i)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(WARM_UP + REPLAYS):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= WARM_UP:
                times[name].append(begin.elapsed_time(end) * 1000 / count)
    return {n: [statistics.median(t), min(t), max(t)] for n, t in times.items()}


def cell(times: list[float]) -> str:
    """Return times as a table has them."""
    return "{:.1f} ({:.1f}-{:.1f})".format(*times)


class Matrix:
    """Copies of one matrix that exceed the cache, packed and dense."""

    def __init__(self, k: Kernel, N: int, K: int) -> None:
        """Make random ones of the kernel's format."""
        self.N, self.K = N, K
        self.bytes = N * K * k.bits // 8 + N * K // k.group * 4
        self.count = max(20, POOL // self.bytes + 1)
        self.packed = weights(k, N, K, self.count)
        wide = max(2, POOL // (2 * N * K) + 1)
        self.dense = torch.randn(wide, N, K, device="cuda").to(TYPES[k.dtype][0])

    def product(
        self, k: Kernel, x: torch.Tensor, y: torch.Tensor
    ) -> Callable[[int], None]:
        """Return a function that multiplies by copy `i`."""

        def product(i: int) -> None:
            w, s, b = (a[i] for a in self.packed)
            k.multiply(x, (w, s, b), y)

        return product


def fits(k: Kernel, rows: int) -> bool:
    """Return whether a tile is one that the planner may choose for these rows."""
    return k.family == "qmm_skinny" and max(rows, 8) <= k.bm < 2 * max(rows, 8)


def tile_of(k: Kernel) -> str:
    """Return the part of a kernel's name that is its tile."""
    return "bm" + k.kernel.partition("_bm")[2]


def measure(kernels: list[Kernel], N: int, K: int, until: float) -> None:
    """Print the times of one shape at the usual format."""
    usual = [k for k in kernels if "_bf16_bf16_b4_g64" in k.kernel]
    matrix = Matrix(usual[0], N, K)
    nibbles = torch.randint(0, 256, (N, K // 2), device="cuda", dtype=torch.uint8)
    pack = torch.ops.aten._convert_weight_to_int4pack
    int4 = [pack(nibbles, 8) for _ in range(matrix.count)]
    zeros = torch.rand(K // 64, N, 2, device="cuda").bfloat16()
    copies = torch.empty(2, 8, matrix.bytes, dtype=torch.uint8, device="cuda")
    w_hat = torch.empty(2, N, K, device="cuda", dtype=torch.bfloat16)
    rounding = next(k for k in usual if k.family == "dequantize")
    w, s, b = matrix.packed
    others = {
        "copied": lambda i: copies[1, i % 8].copy_(copies[0, i % 8]),
        "dequantized": lambda i: rounding.dequantize((w[i], s[i], b[i]), w_hat[i % 2]),
    }
    found = times_of(others, matrix.count)
    size = ", ".join(f"{name} in {cell(t)} us" for name, t in found.items())
    print(f"\n{N} x {K}: {matrix.bytes / 1e6:.1f} MB, {size}", flush=True)
    for M in ROWS:
        if time.monotonic() > until:
            return
        x = torch.randn(M, K, device="cuda").bfloat16()
        y = torch.empty(M, N, device="cuda", dtype=x.dtype)
        ways: dict[str, Callable[[int], object]] = {
            "dense": lambda i, x=x, y=y: torch.matmul(
                x, matrix.dense[i % len(matrix.dense)].T, out=y
            )
        }
        if M <= 64:
            ways["int4"] = lambda i, x=x: torch.ops.aten._weight_int4pack_mm(
                x, int4[i], 64, zeros
            )
        for k in usual:
            if fits(k, M):
                ways[tile_of(k)] = matrix.product(k, x, y)
        taken = times_of(ways, matrix.count).items()
        print(f"  {M:2} rows: " + "  ".join(f"{n} {cell(t)}" for n, t in taken))


def measure_modes(kernels: list[Kernel], N: int, K: int) -> None:
    """Print the times of few rows in each mode."""
    print(f"\n{N} x {K}, rows 1, 8 and 16, in each mode", flush=True)
    modes: dict[tuple, list[Kernel]] = {}
    for k in kernels:
        if k.family == "qmm_skinny" and k.dtype == "bf16":
            modes.setdefault((k.mode, k.bits, k.group), []).append(k)
    for mode, its in modes.items():
        matrix = Matrix(its[0], N, K)
        cells = []
        for M in (1, 8, 16):
            x = torch.randn(M, K, device="cuda").bfloat16()
            y = torch.empty(M, N, device="cuda", dtype=x.dtype)
            ways = {tile_of(k): matrix.product(k, x, y) for k in its if fits(k, M)}
            taken = times_of(ways, matrix.count).items()
            cells += [f"{M} rows, {name}: {cell(t)}" for name, t in taken]
        print(f"  {mode}: " + "  ".join(cells), flush=True)


def main() -> None:
    """Check, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="stop after this")
    until = time.monotonic() + parser.parse_args().seconds
    kernels = [Kernel(spec) for spec in json.loads(Path("kernels.json").read_text())]
    print(torch.cuda.get_device_name(), len(kernels), "kernels")
    for k in kernels:
        shapes = [(k.bm + 3, 200, 640), (1, 70, 128), (2 * k.bm + 1, 330, 128 * 19)]
        errors = [worst_error(k, *shape) for shape in shapes]
        wrong = "" if max(errors) <= 1 else "WRONG "
        print(f"{wrong}{k.kernel}: worst error {max(errors):.2f} of the bound")
    for N, K in SHAPES:
        measure(kernels, N, K, until)
        torch.cuda.empty_cache()
    for N, K in SHAPES[1:3]:
        measure_modes(kernels, N, K)


torch.zeros(1, device="cuda")  # makes the context that the driver's functions need
cuda = ctypes.CDLL("libcuda.so.1")
if __name__ == "__main__":
    main()

"""Times what limits products of few rows, on a GPU: see bench.cuda_products.

    cd DIR && python -m bench.cuda_run_parts

Each tile, and its parts, take turns with kernels that read the same bytes in the widest
loads, and with a kernel that does nothing.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.cuda_run import (
    SHAPES,
    Kernel,
    Matrix,
    cell,
    cuda,
    succeed,
    tile_of,
    times_of,
)

ROWS = (1, 16)
THREADS = 256  # of kernels of wide loads


class WideRead:
    """A kernel of bench.cuda_parts.WIDE."""

    def __init__(self, file: Path) -> None:
        """Load the machine code."""
        self.loads = int(file.stem.split("_")[1])
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        succeed(cuda.cuModuleLoadData(ctypes.byref(module), file.read_bytes()))
        name = file.stem.encode()
        succeed(cuda.cuModuleGetFunction(ctypes.byref(self._function), module, name))

    def read(self, tensor: torch.Tensor, to: torch.Tensor, fours: int) -> None:
        """Read `fours` times 16 bytes."""
        values: list[Any] = [ctypes.c_void_p(tensor.data_ptr()), ctypes.c_ulong(fours)]
        values.append(ctypes.c_void_p(to.data_ptr()))
        pointers = [ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values]
        blocks = -(-fours // (THREADS * self.loads))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        given = (ctypes.c_void_p * len(pointers))(*pointers)
        sizes = (blocks, 1, 1, THREADS, 1, 1)
        succeed(
            cuda.cuLaunchKernel(self._function, *sizes, 0, stream, given, None),
        )


def wide_reads(matrix: Matrix) -> dict[str, Callable[[int], object]]:
    """Return the kernels that read as many bytes as a matrix has, scales included."""
    # From one matrix to the next, as products do.
    fours = matrix.bytes // 16
    pool = torch.empty(matrix.count, fours * 16, dtype=torch.uint8, device="cuda")
    to = torch.zeros(1, dtype=torch.int32, device="cuda")
    ways: dict[str, Callable[[int], object]] = {}
    for file in sorted(Path().glob("read_*_wide.cubin")):
        kernel = WideRead(file)
        ways[f"{kernel.loads} wide loads"] = lambda i, kernel=kernel: kernel.read(
            pool[i], to, fours
        )
        ways["nothing"] = lambda i, kernel=kernel: kernel.read(pool[i], to, 1)
    return ways


def measure(wholes: dict[str, Kernel], parts: list[Kernel], N: int, K: int) -> None:
    """Print the times of one shape, for each number of rows."""
    matrix = Matrix(wholes[parts[0].kernel], N, K)
    copies = torch.empty(2, 8, matrix.bytes, dtype=torch.uint8, device="cuda")
    for M in ROWS:
        x = torch.randn(M, K, device="cuda").bfloat16()
        y = torch.empty(M, N, device="cuda", dtype=x.dtype)
        ways = wide_reads(matrix)
        ways["copied"] = lambda i: copies[1, i % 8].copy_(copies[0, i % 8])
        for k in parts:
            if k.bm == max(M, 8):
                tile = tile_of(k)
                part = k.file.split(".")[0]
                ways[f"{tile}, whole"] = matrix.product(wholes[k.kernel], x, y)
                ways[f"{tile}, {part}"] = matrix.product(k, x, y)
        print(f"\n{N} x {K}, {M} rows, {matrix.bytes / 1e6:.1f} MB")
        for name, times in times_of(ways, matrix.count).items():
            print(f"  {name}: {cell(times)}", flush=True)


def main() -> None:
    """Measure each shape."""
    kernels = [Kernel(spec) for spec in json.loads(Path("kernels.json").read_text())]
    parts = [Kernel(spec) for spec in json.loads(Path("parts.json").read_text())]
    wholes = {k.kernel: k for k in kernels}
    for N, K in SHAPES[1:]:
        measure(wholes, parts, N, K)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""Checks and times the tiles of bench.cuda_products, on a GPU: python DIR/run.py

Weights are cold: products take turns on copies of the matrix that exceed the cache.
"""

from __future__ import annotations

import ctypes
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

BITS, GROUP = 4, 64
SHAPES = ((1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336))
ROWS = (1, 2, 8, 16, 32, 64)
POOL = 280 << 20  # bytes of weights; an H200 has 60 MB of L2 cache
MAX_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class Params(ctypes.Structure):
    """MatmulParams of kernels/shared.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("M", "N", "K", "count", "epilogue")]


class Tile:
    """A compiled kernel. Call it to launch it on torch's current stream."""

    def __init__(self, path: Path) -> None:
        """Load the machine code."""
        self.bm, self.bn, self.warps, *_ = map(int, path.stem.split("_"))
        self.shared = 4 * self.bm * self.bn * self.warps
        self.name = path.stem
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        code = path.read_bytes()
        succeed(cuda.cuModuleLoadData(ctypes.byref(self._module), code))
        succeed(
            cuda.cuModuleGetFunction(ctypes.byref(self._function), self._module, b"k")
        )
        succeed(cuda.cuFuncSetAttribute(self._function, MAX_SHARED, self.shared))

    def __call__(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        s: torch.Tensor,
        b: torch.Tensor,
        y: torch.Tensor,
    ) -> None:
        """Compute y = x @ w_hat.T."""
        (M, K), N = x.shape, y.shape[1]
        values = [ctypes.c_void_p(a.data_ptr()) for a in (w, s, b, x, s, s, y)]
        values.append(Params(M, N, K, 1, 0))
        pointers = [ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values]
        grid = (-(-N // self.bn), -(-M // self.bm), 1)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        array = (ctypes.c_void_p * len(pointers))(*pointers)
        succeed(
            cuda.cuLaunchKernel(
                self._function,
                *grid,
                *(32 * self.warps, 1, 1),
                self.shared,
                stream,
                array,
                None,
            )
        )


def succeed(error: int) -> None:
    """Raise if a function of the driver failed."""
    if error:
        raise RuntimeError(f"the driver's error {error}")


def weights(N: int, K: int, count: int) -> tuple[torch.Tensor, ...]:
    """Return random words, scales and biases of `count` matrices."""
    shape = (count, N, K // GROUP)
    w = torch.randint(-(2**31), 2**31, (count, N, K * BITS // 32), device="cuda")
    s = (torch.rand(shape, device="cuda") * 0.02 + 0.005).bfloat16()
    b = (-s.float() * 2 ** (BITS - 1) + 0.01 * torch.randn(shape, device="cuda")).to(s)
    return w.to(torch.int32), s, b


def worst_error(tile: Tile, M: int, N: int, K: int) -> float:
    """Return the largest error, in units of the bound of docs/reference/numerics.md."""
    w, s, b = (a[0] for a in weights(N, K, 1))
    x = torch.randn(M, K, device="cuda").bfloat16()
    y = torch.full((M, N), math.nan, device="cuda", dtype=x.dtype)
    tile(x, w, s, b, y)
    torch.cuda.synchronize()
    bits = np.unpackbits(w.cpu().numpy().view(np.uint8), axis=-1, bitorder="little")
    codes = (bits.reshape(N, K, BITS) << np.arange(BITS)).sum(-1)
    q = torch.from_numpy(codes).cuda().double()
    s, b = (a.double().repeat_interleave(GROUP, -1) for a in (s, b))
    exact = x.double() @ (q * s + b).T
    magnitude = x.double().abs() @ (q * s.abs() + b.abs()).T
    bound = 7 * math.sqrt(K + 4) * 2**-24 * magnitude * (1 + 2**-8)
    bound += 2**-8 * exact.abs() + 2**-24
    return ((y.double() - exact).abs() / bound).nan_to_num(nan=math.inf).max().item()


def time_of(product: Callable[[int], object], count: int) -> str:
    """Return the median, least and most microseconds of a product in a graph."""
    product(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            product(i)
    times = []
    for _ in range(9):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / count)
    times = sorted(times[2:])
    return f"{statistics.median(times):.1f} ({times[0]:.1f}-{times[-1]:.1f})"


def measure(tiles: list[Tile], N: int, K: int) -> None:
    """Print the times of one shape."""
    size = N * K // 2 + N * K // GROUP * 4
    count = max(20, POOL // size + 1)
    w, s, b = weights(N, K, count)
    dense = torch.randn(max(2, POOL // (2 * N * K) + 1), N, K, device="cuda").bfloat16()
    nibbles = torch.randint(0, 256, (N, K // 2), device="cuda", dtype=torch.uint8)
    packed = [
        torch.ops.aten._convert_weight_to_int4pack(nibbles, 8) for _ in range(count)
    ]
    zeros = torch.rand(K // GROUP, N, 2, device="cuda").bfloat16()
    copies = torch.empty(2, 8, size, dtype=torch.uint8, device="cuda")
    copy = time_of(lambda i: copies[1, i % 8].copy_(copies[0, i % 8]), 16)
    print(f"\n{N} x {K}: {size / 1e6:.1f} MB, copied in {copy} us", flush=True)

    def line(M: int) -> str:
        x = torch.randn(M, K, device="cuda").bfloat16()
        y = torch.empty(M, N, device="cuda", dtype=x.dtype)
        products: dict[str, Callable[[int], object]] = {
            "dense": lambda i: torch.matmul(x, dense[i % len(dense)].T, out=y),
            "int4": lambda i: torch.ops.aten._weight_int4pack_mm(
                x, packed[i % count], GROUP, zeros
            ),
        }
        for tile in tiles:
            if max(M, 8) <= tile.bm < 2 * max(M, 8):
                products[tile.name] = partial(launch, tile, x, y)
        cells = (f"{name} {time_of(f, count)}" for name, f in products.items())
        return f"  {M:2} rows: " + "  ".join(cells)

    def launch(tile: Tile, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        tile(x, w[i], s[i], b[i], y)

    for M in ROWS:
        print(line(M), flush=True)


def main() -> None:
    """Check, then measure."""
    tiles = [Tile(path) for path in sorted(Path(__file__).parent.glob("*.cubin"))]
    print(torch.cuda.get_device_name(), len(tiles), "tiles")
    for tile in tiles:
        shapes = [(tile.bm, 100, 64 * 37), (1, 37, 128), (tile.bm + 3, 512, 4096)]
        errors = [worst_error(tile, *shape) for shape in shapes]
        print(f"{tile.name}: worst error {max(errors):.2f} of the bound")
    for N, K in SHAPES:
        measure(tiles, N, K)
        torch.cuda.empty_cache()


torch.zeros(1, device="cuda")  # makes the context that the driver's functions need
cuda = ctypes.CDLL("libcuda.so.1")
if __name__ == "__main__":
    main()

"""Checks and times products of hundreds of rows, on a GPU with wgmma.

    cd DIR && python -m bench.cuda_run_many

DIR is from bench.cuda_products. "both" is `dequantize` with a dense product.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.cuda_exact import Weights, exact
from bench.cuda_run import (
    TYPES,
    Kernel,
    Matrix,
    Params,
    cell,
    cuda,
    succeed,
    tile_of,
    times_of,
    weights,
)

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336), (6144, 4096), (28672, 4096))
ROWS = (33, 64, 128, 256, 300, 384, 448, 512, 1024)
# Products to check: a part of a tile, several tiles, and more steps than stages.
CHECKED = ((67, 67, 384), (300, 200, 640), (513, 330, 128 * 19))
# Values of CUtensorMapDataType, -Swizzle (128 bytes) and -L2promotion (128 bytes).
TWO_BYTES, FOUR_BYTES, SWIZZLE, PROMOTION = 1, 2, 3, 2


class Map(ctypes.Structure):
    """CUtensorMap."""

    _fields_ = [("bytes", ctypes.c_char * 128)]


def map_of(a: torch.Tensor, box: tuple[int, int], kind: int, swizzle: int) -> Map:
    """Return the map of a matrix that is copied in boxes of [rows, columns]."""
    memory = ctypes.create_string_buffer(192)
    at = (ctypes.addressof(memory) + 63) // 64 * 64
    rows, columns = a.shape
    succeed(
        cuda.cuTensorMapEncodeTiled(
            ctypes.c_void_p(at),
            *(kind, 2, ctypes.c_void_p(a.data_ptr())),
            (ctypes.c_uint64 * 2)(columns, rows),
            (ctypes.c_uint64 * 1)(columns * a.element_size()),
            (ctypes.c_uint32 * 2)(box[1], box[0]),
            (ctypes.c_uint32 * 2)(1, 1),
            *(0, swizzle, PROMOTION, 0),
        )
    )
    return Map.from_buffer_copy(ctypes.string_at(at, 128))


class Boxed(Kernel):
    """A kernel that copies boxes of x and of w (kernels/cuda/qmm_wgmma.h)."""

    def multiply(self, x: torch.Tensor, weights: Weights, y: torch.Tensor) -> None:
        """Compute y = x @ w_hat.T."""
        (M, K), N = x.shape, y.shape[1]
        w, s, b = weights
        blocks = -(-N // self.bn) * -(-M // self.bm)
        maps = (
            map_of(x, (64, 64), TWO_BYTES, SWIZZLE),
            map_of(w, (128, 8), FOUR_BYTES, 0),
        )
        params = Params(M, N, K, 1, 0)
        self.launch((blocks, 1, 1), (w, s, b, x, s, s, y), params, *maps)


def worst_error(k: Kernel, M: int, N: int, K: int) -> float:
    """Return the largest error, in units of the bound of docs/reference/numerics.md."""
    words, s, b = weights(k, N, K, 1)
    given = (words[0], s[0], b[0])
    dtype, u = TYPES[k.dtype]
    w_hat, magnitude = exact(k.mode, k.bits, k.group, given)
    x = torch.randn(M, K, device="cuda").to(dtype)
    y = torch.full((M, N), math.nan, device="cuda", dtype=dtype)
    k.multiply(x, given, y)
    torch.cuda.synchronize()
    # Weights are rounded to the type of x.
    right = x.double() @ w_hat.to(dtype).double().T
    off = 7 * math.sqrt(K + 4) * 2**-24 * (1 + 2**-8)
    bound = off * (x.double().abs() @ magnitude.T) + u * right.abs() + 2**-24
    return ((y.double() - right).abs() / bound).nan_to_num(nan=math.inf).max().item()


def measure(kernels: list[Kernel], many: list[Boxed], N: int, K: int) -> None:
    """Print the times of one shape at the usual format."""
    usual = [k for k in kernels if "_bf16_bf16_b4_g64" in k.kernel]
    rounding = next(k for k in usual if k.family == "dequantize")
    skinny = [k for k in usual if k.family == "qmm_skinny" and k.bm == 64]
    matrix = Matrix(rounding, N, K)
    w, s, b = matrix.packed
    w_hat = torch.empty(2, N, K, device="cuda", dtype=torch.bfloat16)
    print(f"\n{N} x {K}", flush=True)
    for M in ROWS:
        x = torch.randn(M, K, device="cuda").bfloat16()
        y = torch.empty(M, N, device="cuda", dtype=x.dtype)

        def dense(i: int, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            torch.matmul(x, matrix.dense[i % len(matrix.dense)].T, out=y)

        def both(i: int, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            rounding.dequantize((w[i], s[i], b[i]), w_hat[i % 2])
            torch.matmul(x, w_hat[i % 2].T, out=y)

        ways: dict[str, Callable[[int], object]] = {"dense": dense, "both": both}
        for k in [*(skinny if M <= 64 else []), *many]:
            if "_bf16_bf16_b4_g64" in k.kernel:
                ways[tile_of(k)] = matrix.product(k, x, y)
        taken = times_of(ways, matrix.count).items()
        print(f"  {M:4} rows: " + "  ".join(f"{n} {cell(t)}" for n, t in taken))


def main() -> None:
    """Check, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="stop after this")
    until = time.monotonic() + parser.parse_args().seconds
    kernels = [Kernel(spec) for spec in json.loads(Path("kernels.json").read_text())]
    many = [Boxed(spec) for spec in json.loads(Path("many.json").read_text())]
    print(torch.cuda.get_device_name(), len(many), "kernels")
    for k in many:
        error = max(worst_error(k, *shape) for shape in CHECKED)
        wrong = "" if error <= 1 else "WRONG "
        print(f"{wrong}{k.kernel}: worst error {error:.2f} of the bound")
    for N, K in SHAPES:
        if time.monotonic() < until:
            measure(kernels, many, N, K)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

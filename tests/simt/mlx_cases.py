"""Problems for MLX's kernels, with the exact results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tests.support import oracle, tolerance

from . import mlx_kernels, numbers, plans
from .cases import Case, weights
from .plans import Problem

EXPERTS = 3
# (M, N, K): less and more than one tile, an odd N, the K of qmv_quad, and rows enough
# for tiles of sorted experts.
_SHAPES = [
    (1, 64, 512),
    (3, 40, 256),
    (35, 72, 256),
    (5, 65, 384),
    (2, 64, 128),
    (41, 64, 128),
]


def of_format(
    dtype: str, bits: int, group_size: int, mode: str = "affine"
) -> Iterator[tuple[str, Problem]]:
    """Yield (kernel, problem) for each kernel that MLX may use for a problem."""
    base = Problem(
        dtype=dtype,
        scale_dtype=plans.SCALES_OF.get(mode, dtype),
        bits=bits,
        group_size=group_size,
        mode=mode,
        batch_size=2,
        batch_count=EXPERTS,
    )
    for M, N, K in _SHAPES:
        for transpose in (True, False):
            p = replace(base, M=M, N=N, K=K, transpose=transpose)
            if (K if transpose else N) % group_size == 0:
                for kernel in mlx_kernels.WITNESSES:
                    if mlx_kernels.takes(kernel, p):
                        yield kernel, p


def case(kernel: str, p: Problem) -> Case:
    """Return random operands for one of MLX's kernels, with the exact result."""
    rng = np.random.default_rng(0)
    witness = mlx_kernels.WITNESSES[kernel]
    matrices = EXPERTS if witness.experts or witness.offsets else 1
    shape = (matrices, p.N, p.K) if p.transpose else (matrices, p.K, p.N)
    w, stored = weights(p, shape, rng)
    lhs, rhs = np.array([1, 0], np.uint32), np.array([2, 1], np.uint32)
    x = rng.standard_normal((p.batch_size if witness.experts else 1, p.M, p.K))
    x = numbers.rounded(x, p.dtype)
    of_rows = np.sort(rng.integers(0, EXPERTS, p.M))
    arrays = {
        **stored,
        "x": numbers.encode(x, p.dtype),
        "lhs": lhs,
        "rhs": rhs,
        "offsets": np.searchsorted(of_rows, np.arange(EXPERTS)).astype(np.int32),
    }
    w_hat, magnitude = w.dequantize(), w.magnitude()
    if witness.experts:
        x, w_hat, magnitude = x[lhs], w_hat[rhs], magnitude[rhs]
    if witness.offsets:
        # Each row by itself, with the matrix of its expert.
        x, w_hat, magnitude = x.swapaxes(0, 1), w_hat[of_rows], magnitude[of_rows]
    exact = oracle.matmul(x, w_hat, p.transpose)
    magnitude = oracle.matmul(abs(x), magnitude, p.transpose)
    if witness.offsets:
        exact, magnitude = exact.swapaxes(0, 1), magnitude.swapaxes(0, 1)
    allowed = tolerance.bound(exact, magnitude, p.K, p.dtype, p.dtype)
    if witness.parts > 1:
        # Each part is rounded by itself.
        allowed = allowed * (witness.parts + 1)
    launch, operands, _ = mlx_kernels.launch(kernel, p, arrays)
    dtype = mlx_kernels.result_type(kernel, p)
    return Case(launch, operands, dtype, exact, allowed, witness.parts)

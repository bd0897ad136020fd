"""MLX's kernels, proven on Apple's GPUs, are right and clean on this bench."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import oracle, simt, tolerance
from tests.simt import build, mlx_kernels, numbers, verdicts

# 4 and 8 bits in every type, the other widths in one.
FORMATS = [
    *itertools.product(("float32", "float16", "bfloat16"), (4, 8), (32, 64, 128)),
    *itertools.product(("float16",), (2, 3, 5, 6), (64,)),
]
# (M, N, K): a part of a tile and more than one; an odd N; the K of qmv_quad.
SHAPES = [(1, 64, 512), (3, 40, 256), (35, 72, 256), (5, 65, 384), (2, 64, 128)]
EXPERTS = 3


def problems(dtype: str, bits: int, group_size: int) -> Iterator[simt.Problem]:
    for (M, N, K), transpose in itertools.product(SHAPES, (True, False)):
        if (K if transpose else N) % group_size == 0:
            yield simt.Problem(
                M=M,
                N=N,
                K=K,
                dtype=dtype,
                scale_dtype=dtype,
                bits=bits,
                group_size=group_size,
                transpose=transpose,
                batch_size=2,
                batch_count=EXPERTS,
            )


def cases(dtype: str, bits: int, group_size: int) -> Iterator[tuple[str, simt.Problem]]:
    for p in problems(dtype, bits, group_size):
        for kernel, witness in mlx_kernels.WITNESSES.items():
            if witness.takes(p):
                yield kernel, p


def check(kernel: str, p: simt.Problem, library: Path, options: simt.Options) -> None:
    rng = np.random.default_rng(0)
    witness = mlx_kernels.WITNESSES[kernel]
    matrices = EXPERTS if witness.experts else 1
    shape = (matrices, p.N, p.K) if p.transpose else (matrices, p.K, p.N)
    w = oracle.random_weights(rng, shape, p.bits, p.group_size)
    scales = numbers.rounded(w.scales, p.dtype)
    biases = numbers.rounded(w.biases, p.dtype)
    w = oracle.Weights(w.words, scales, biases, p.bits, p.group_size)
    lhs, rhs = np.array([1, 0], np.uint32), np.array([2, 1], np.uint32)
    x = rng.standard_normal((p.batch_size if witness.experts else 1, p.M, p.K))
    x = numbers.rounded(x, p.dtype)
    arrays = {
        "w": w.words,
        "scales": numbers.encode(scales, p.dtype),
        "biases": numbers.encode(biases, p.dtype),
        "x": numbers.encode(x, p.dtype),
        "lhs": lhs,
        "rhs": rhs,
    }
    out = mlx_kernels.call(kernel, p, arrays, options, library).outputs["out"]
    whole = out.dtype == np.float32
    result = numbers.decode(out, "float32" if whole else p.dtype)
    w_hat, magnitude = w.dequantize(), w.magnitude()
    if witness.experts:
        x, w_hat, magnitude = x[lhs], w_hat[rhs], magnitude[rhs]
    exact = oracle.matmul(x, w_hat, p.transpose)
    magnitude = oracle.matmul(abs(x), magnitude, p.transpose)
    allowed = tolerance.bound(exact, magnitude, p.K, p.dtype, p.dtype)
    if witness.parts > 1:
        # Each part was rounded on its own.
        allowed = allowed * (witness.parts + 1)
        result = result.astype(np.float64).sum(0, keepdims=True)
    tolerance.assert_close(result, exact, allowed, f"{kernel} {p}")


@pytest.mark.parametrize("instrumented", [False, True], ids=["plain", "watched"])
@pytest.mark.parametrize(("dtype", "bits", "group_size"), FORMATS)
def test_the_bench_agrees_with_apples_gpus(
    dtype: str, bits: int, group_size: int, instrumented: bool
) -> None:
    # qmv computes the last rows of w twice where N % 8, in two threadgroups.
    options = simt.Options(instrumented=instrumented, redundant_writes=True)
    found = list(cases(dtype, bits, group_size))
    instances = {mlx_kernels.instance(kernel, p) for kernel, p in found}
    unit = mlx_kernels.unit(instances)
    library = build.compile_unit(unit, instrumented=instrumented)

    def check_all() -> None:
        for kernel, p in found:
            check(kernel, p, library, options)

    name = f"mlx {dtype} {bits} {group_size} {instrumented}"
    verdicts.once(name, library, check_all)


def test_every_witness_testifies() -> None:
    found = {kernel for fields in FORMATS for kernel, _ in cases(*fields)}
    assert found == set(mlx_kernels.WITNESSES)

"""MLX's kernels, proven on Apple's GPUs, run here without findings and correctly."""

from __future__ import annotations

import itertools

import pytest

from tests import simt
from tests.simt import build, mlx_cases, mlx_kernels, verdicts
from tests.simt.amount import FULL
from tests.support import oracle

TYPES = ("float32", "float16", "bfloat16")
# 4 and 8 bits in every type, the other widths in one.
AFFINE = [
    *itertools.product(TYPES, (4, 8), (32, 64, 128), ("affine",)),
    *itertools.product(("float16",), (1, 2, 3, 5, 6), (64,), ("affine",)),
]
FLOATS = [
    (dtype, bits, group_size, mode)
    for dtype in TYPES
    for mode, (bits, group_size, *_) in oracle.FLOAT_MODES.items()
]
# Without NIBBLE_SIMT=all: every type and mode, and the widths that differ in how codes
# lie in words.
SOME = [
    ("float32", 4, 64, "affine"),
    ("float16", 8, 64, "affine"),
    ("bfloat16", 8, 64, "affine"),
    ("float16", 3, 64, "affine"),
    ("float16", 6, 64, "affine"),
    *FLOATS[::4],
]
FORMATS = [*AFFINE, *FLOATS] if FULL else SOME
# One build without instruments is enough to show that they change no result.
RUNS = [(*fields, True) for fields in FORMATS]
RUNS += [(*fields, False) for fields in (FORMATS if FULL else FORMATS[2:3])]


@pytest.mark.parametrize(("dtype", "bits", "group_size", "mode", "instrumented"), RUNS)
def test_the_bench_agrees_with_apples_gpus(
    dtype: str, bits: int, group_size: int, mode: str, instrumented: bool
) -> None:
    # With N % 8, two threadgroups of qmv compute the last rows of w.
    options = simt.Options(instrumented=instrumented, redundant_writes=True)
    found = list(mlx_cases.of_format(dtype, bits, group_size, mode))
    unit = mlx_kernels.unit({mlx_kernels.instance(*pair) for pair in found})
    library = build.compile_unit(unit, instrumented=instrumented)

    def check_all() -> None:
        for pair in found:
            mlx_cases.case(*pair).check(options, library)

    name = f"mlx {dtype} {bits} {group_size} {mode} {instrumented}"
    verdicts.once(name, library.name, check_all)


def test_every_witness_testifies() -> None:
    found = {kernel for fields in FORMATS for kernel, _ in mlx_cases.of_format(*fields)}
    assert found == set(mlx_kernels.WITNESSES)

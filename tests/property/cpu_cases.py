"""Operands of the CPU backend, and its processes: for each instruction set."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import strategies as st

from mlx_nibble.formats import BITS, FLOAT_MODES, GROUP_SIZES, MODES
from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.cpu import programs
from tests.cpu.request import DTYPES, Types
from tests.cpu.runner import Runner
from tests.simt import numbers
from tests.support import oracle, tolerance

X86 = ["scalar", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "amx"]
ARM = ["neon", "neon_dotprod", "neon_i8mm"]

DTYPE = st.sampled_from(DTYPES)
# Bits and group size of the affine modes, or the name of a mode of floats.
AFFINE = st.tuples(st.sampled_from(BITS), st.sampled_from(GROUP_SIZES))
FORMAT = st.one_of(AFFINE, st.sampled_from(FLOAT_MODES))
# Edges of tiles and their neighbours; 300 is more than one block of rows.
ROWS = st.sampled_from([1, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 24, 25, 300])
COLUMNS = st.one_of(st.integers(1, 9), st.sampled_from([15, 31, 32, 33, 64, 65, 131]))
# Groups in a row: 33 groups of 32 are slightly more than one block of codes.
GROUPS = st.sampled_from([1, 1, 2, 3, 5, 9, 33])
BATCH = st.sampled_from([(1, 1, 1), (1, 1, 1), (3, 1, 1), (4, 2, 2), (6, 3, 1)])
# Products that choose their matrix.
GATHERED = st.tuples(
    st.sampled_from([1, 2, 7, 40, 300]),  # products
    st.sampled_from([1, 1, 1, 3, 12]),  # rows of each
    st.sampled_from([1, 2, 5, 9]),  # matrices of weights
    st.sampled_from([1, 4, 33]),  # matrices of x
)


@functools.cache
def start(isa: str) -> Runner:
    if isa in ARM:
        emulator = programs.qemu()
        if emulator is None:
            pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user)")
        return Runner(programs.arm(emulator), isa)
    command = programs.native()
    if command is None:
        pytest.skip("only an editable installation has the CPU runner")
    if isa not in Runner(command).isas:
        pytest.skip(f"this machine has no {isa}")
    return Runner(command, isa)


def make(
    seed: int,
    fmt: tuple[int, int] | str,
    types: Types,
    shape: tuple[int, int, int, int],
    batch: tuple[int, int, int] = (1, 1, 1),
    transpose: bool = True,
) -> tuple[np.ndarray, oracle.Weights | oracle.FloatWeights]:
    """Return x [size, M, K or N] and weights [count, N, K], both as stored."""
    M, N, groups, spread = shape
    rng = np.random.default_rng(seed)
    if isinstance(fmt, str):
        K = groups * MODES[fmt].default_group_size
        w = oracle.random_floats(rng, (batch[1], N, K), fmt)
    else:
        bits, group_size = fmt
        K = groups * group_size
        w = oracle.random_weights(rng, (batch[1], N, K), bits, group_size)
        w = replace(
            w,
            scales=numbers.rounded(w.scales, types.scale_dtype),
            biases=numbers.rounded(w.biases, types.scale_dtype),
        )
    x = rng.standard_normal((batch[0], M, K if transpose else N))
    # Groups of very different magnitude; some are all zero.
    x *= np.exp(rng.normal(0, spread, x.shape)) * (rng.random(x.shape) > 0.1)
    return numbers.rounded(x, types.dtype), w


def matrices(
    w: oracle.Weights | oracle.FloatWeights, batch: tuple[int, int, int]
) -> np.ndarray:
    """Return the index of the weights that each batch of activations meets."""
    size, count, repeat = batch
    return np.arange(size) // repeat % count


def rounding(
    backend: Runner,
    x: np.ndarray,
    w: oracle.Weights | oracle.FloatWeights,
    which: np.ndarray,
    types: Types,
    int8: bool = False,
    transpose: bool = True,
    int16: bool = False,
) -> np.ndarray:
    """Return what the rounding of x to integers adds to a bound."""
    activations = backend.activations(types.dtype, int8, transpose, int16)
    off = tolerance.integer_bound(
        x,
        w.dequantize()[which],
        w.group_size,
        activations,
        backend.multiplies_bfloats(),
    )
    return off * (1 + UNIT_ROUNDOFF[types.dtype])


def as_symmetric(w):
    """Return the stored arrays of a symmetric matrix, and the matrix they mean.

    The stored biases are NaN: a kernel that reads them is wrong everywhere. A mode of
    floats has no biases.
    """
    if isinstance(w, oracle.FloatWeights):
        return w, w
    stored = replace(w, biases=np.full_like(w.biases, np.nan))
    return stored, replace(w, biases=w.scales * np.float32(-(2 ** (w.bits - 1))))


def gathered(
    seed: int,
    fmt: tuple[int, int] | str,
    types: Types,
    N: int,
    groups: int,
    form: tuple[int, int, int, int],
    in_order: bool,
    transpose: bool = True,
) -> tuple[np.ndarray, oracle.Weights | oracle.FloatWeights, np.ndarray, np.ndarray]:
    """Return x, w and indices; some matrices of w may have no index."""
    B, M, experts, rows = form
    x, w = make(
        seed, fmt, types, (M, N, groups, 0), (max(rows, experts), experts, 1), transpose
    )
    rng = np.random.default_rng(seed)
    lhs = rng.integers(0, rows, B, dtype=np.uint32)
    rhs = rng.integers(0, experts, B, dtype=np.uint32)
    return x[:rows], w, lhs, np.sort(rhs) if in_order else rhs

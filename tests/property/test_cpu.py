"""Each instruction set of the CPU backend against the oracle; Arm's run in qemu."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_nibble.formats import FLOAT_MODES, MODES
from tests.cpu import programs
from tests.cpu.request import DTYPES, Types
from tests.cpu.runner import Runner
from tests.property.cpu_cases import (
    ARM,
    BATCH,
    COLUMNS,
    DTYPE,
    FORMAT,
    GATHERED,
    GROUPS,
    ROWS,
    X86,
    as_symmetric,
    gathered,
    make,
    matrices,
    rounding,
    start,
)
from tests.simt import numbers
from tests.support import oracle, tolerance

pytestmark = pytest.mark.slow


@pytest.fixture(params=X86 + ARM, scope="module")
def backend(request) -> Runner:
    return start(request.param)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    fmt=FORMAT,
    types=st.builds(Types, DTYPE, DTYPE),
    shape=st.tuples(ROWS, COLUMNS, GROUPS, st.sampled_from([0, 1])),
    batch=BATCH,
    transpose=st.booleans(),
    symmetric=st.booleans(),
)
def test_products(backend, seed, fmt, types, shape, batch, transpose, symmetric):
    x, w = make(seed, fmt, types, shape, batch, transpose)
    stored, w = as_symmetric(w) if symmetric else (w, w)
    y = backend.matmul(
        x, stored, types, transpose=transpose, batch=batch, symmetric=symmetric
    )
    which = matrices(w, batch)
    exact = oracle.matmul(x, w.dequantize()[which], transpose)
    magnitude = oracle.matmul(abs(x), w.magnitude()[which], transpose)
    allowed = tolerance.bound(exact, magnitude, x.shape[-1], types.dtype)
    allowed += rounding(backend, x, w, which, types, transpose=transpose)
    tolerance.assert_close(y, exact, allowed)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    fmt=FORMAT,
    types=st.builds(Types, DTYPE, DTYPE),
    shape=st.tuples(ROWS, COLUMNS, GROUPS, st.just(0)),
    batch=BATCH,
    bias=st.booleans(),
    residual=st.booleans(),
)
def test_epilogues_are_added_before_the_one_rounding(
    backend, seed, fmt, types, shape, batch, bias, residual
):
    x, w = make(seed, fmt, types, shape, batch)
    rng = np.random.default_rng(seed)
    y_shape = (batch[0], shape[0], shape[1])
    b = numbers.rounded(10 * rng.standard_normal(shape[1]), types.dtype)
    r = numbers.rounded(10 * rng.standard_normal(y_shape), types.dtype)
    y = backend.matmul(
        x,
        w,
        types,
        batch=batch,
        bias=b if bias else None,
        residual=r if residual else None,
    )
    which = matrices(w, batch)
    exact = oracle.matmul(x, w.dequantize()[which]) + bias * b + residual * r
    magnitude = oracle.matmul(abs(x), w.magnitude()[which])
    magnitude = magnitude + bias * abs(b) + residual * abs(r)
    allowed = tolerance.bound(exact, magnitude, x.shape[-1] + 2, types.dtype)
    allowed += rounding(backend, x, w, which, types)
    tolerance.assert_close(y, exact, allowed)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    fmt=FORMAT,
    types=st.builds(Types, DTYPE, DTYPE),
    shape=st.tuples(ROWS, COLUMNS, GROUPS, st.just(0)),
    batch=BATCH,
    int8=st.booleans(),
)
def test_swiglu(backend, seed, fmt, types, shape, batch, int8):
    x, gate = make(seed, fmt, types, shape, batch)
    _, up = make(seed + 1, fmt, types, shape, batch)
    y = backend.swiglu(x, gate, up, types, batch=batch, int8=int8)
    which = matrices(gate, batch)
    activations = backend.activations(types.dtype, int8)
    exact, allowed = tolerance.swiglu(x, gate, up, which, types.dtype, activations)
    tolerance.assert_close(y, exact, allowed)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    fmt=FORMAT,
    types=st.builds(Types, DTYPE, DTYPE),
    N=COLUMNS,
    groups=st.sampled_from([1, 2, 3]),
    form=GATHERED,
    in_order=st.booleans(),
    transpose=st.booleans(),
    int8=st.booleans(),
)
def test_gathered_products(
    backend, seed, fmt, types, N, groups, form, in_order, transpose, int8
):
    x, w, lhs, rhs = gathered(seed, fmt, types, N, groups, form, in_order, transpose)
    y = backend.gather(x, w, lhs, rhs, types, transpose=transpose, int8=int8)
    w_hat = w.dequantize()[rhs]
    exact = oracle.matmul(x[lhs], w_hat, transpose)
    magnitude = oracle.matmul(abs(x[lhs]), w.magnitude()[rhs], transpose)
    allowed = tolerance.bound(exact, magnitude, x.shape[-1], types.dtype)
    allowed += rounding(backend, x[lhs], w, rhs, types, int8, transpose)
    tolerance.assert_close(y, exact, allowed)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32),
    fmt=FORMAT,
    types=st.builds(Types, DTYPE, DTYPE),
    N=COLUMNS,
    groups=st.sampled_from([1, 2, 3]),
    form=GATHERED,
    in_order=st.booleans(),
)
def test_gathered_swiglu(backend, seed, fmt, types, N, groups, form, in_order):
    x, gate, lhs, rhs = gathered(seed, fmt, types, N, groups, form, in_order)
    _, up, _, _ = gathered(seed + 1, fmt, types, N, groups, form, in_order)
    y = backend.gather(x, gate, lhs, rhs, types, up=up)
    activations = backend.activations(types.dtype)
    exact, allowed = tolerance.swiglu(x[lhs], gate, up, rhs, types.dtype, activations)
    tolerance.assert_close(y, exact, allowed)


def test_a_wrong_index_reads_nothing_astray(backend):
    types = Types("float32", "float32")
    x, w, lhs, rhs = gathered(0, (4, 64), types, 9, 1, (3, 1, 2, 2), False)
    last = backend.gather(x, w, np.full_like(lhs, 1), np.full_like(rhs, 1), types)
    far = np.full_like(lhs, 2**32 - 1)
    np.testing.assert_array_equal(backend.gather(x, w, far, far, types), last)


def test_threads_leave_each_other_s_rows_alone(backend):
    """Several threads arrange rows of x that end within a vector."""
    types = Types("float16", "float16")
    x, w = make(0, (4, 32), types, (2048, 37, 1, 0), transpose=False)
    y = backend.matmul(x, w, types, transpose=False)
    exact = oracle.matmul(x, w.dequantize(), False)
    magnitude = oracle.matmul(abs(x), w.magnitude(), False)
    tolerance.assert_close(y, exact, tolerance.bound(exact, magnitude, 37, "float16"))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    fmt=FORMAT,
    types=st.builds(Types, DTYPE, DTYPE),
    shape=st.tuples(ROWS, COLUMNS, GROUPS, st.sampled_from([0, 1])),
    batch=BATCH,
    symmetric=st.booleans(),
    int8=st.booleans(),
)
def test_products_of_activations_as_integers(
    backend, seed, fmt, types, shape, batch, symmetric, int8
):
    x, w = make(seed, fmt, types, shape, batch)
    stored, w = as_symmetric(w) if symmetric else (w, w)
    form = {"int8": int8, "int16": not int8}
    y = backend.matmul(x, stored, types, batch=batch, symmetric=symmetric, **form)
    which = matrices(w, batch)
    exact = oracle.matmul(x, w.dequantize()[which])
    magnitude = oracle.matmul(abs(x), w.magnitude()[which])
    allowed = tolerance.bound(exact, magnitude, x.shape[-1], types.dtype)
    allowed += rounding(backend, x, w, which, types, **form)
    tolerance.assert_close(y, exact, allowed)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    fmt=FORMAT,
    types=st.builds(Types, DTYPE, DTYPE),
    shape=st.tuples(st.just(27), COLUMNS, GROUPS, st.just(0)),
    rows=st.integers(1, 26),
    int8=st.booleans(),
)
def test_a_row_does_not_depend_on_the_others(
    backend, seed, fmt, types, shape, rows, int8
):
    x, w = make(seed, fmt, types, shape)
    how = {"int8": int8, "invariant": isinstance(fmt, str)}
    all_rows = backend.matmul(x, w, types, **how)
    some = backend.matmul(x[:, :rows], w, types, **how)
    np.testing.assert_array_equal(some, all_rows[:, :rows])


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32),
    fmt=st.sampled_from([(2, 128), (3, 128), (4, 128), (8, 128), *FLOAT_MODES]),
    groups=st.sampled_from([32, 33, 49]),  # two ranges of k, and a part of another
    types=st.builds(Types, DTYPE, DTYPE),
    N=st.sampled_from([1, 31, 33, 64]),
    M=st.sampled_from([1, 3, 30]),
    int8=st.booleans(),
    addends=st.booleans(),
)
def test_few_columns_of_long_rows(
    backend, seed, fmt, groups, types, N, M, int8, addends
):
    """Several ranges of k are multiplied separately."""
    size = MODES[fmt].default_group_size if isinstance(fmt, str) else fmt[1]
    x, w = make(seed, fmt, types, (M, N, groups * 128 // size, 0))
    rng = np.random.default_rng(seed)
    b = r = None
    if addends:
        b = numbers.rounded(10 * rng.standard_normal(N), types.dtype)
        r = numbers.rounded(10 * rng.standard_normal((1, M, N)), types.dtype)
    how = {"int8": int8, "bias": b, "invariant": isinstance(fmt, str)}
    y = backend.matmul(x, w, types, residual=r, **how)
    packed = backend.matmul(x, w, types, residual=r, packed=True, **how)
    np.testing.assert_array_equal(packed, y)
    last = r[:, -1:] if addends else None
    alone = backend.matmul(x[:, -1:], w, types, residual=last, **how)
    np.testing.assert_array_equal(alone, y[:, -1:])
    if not int8:
        exact = oracle.matmul(x, w.dequantize())
        magnitude = oracle.matmul(abs(x), w.magnitude())
        if addends:
            exact, magnitude = exact + b + r, magnitude + abs(b) + abs(r)
        allowed = tolerance.bound(exact, magnitude, x.shape[-1] + 2, types.dtype)
        allowed += rounding(backend, x, w, np.zeros(1, int), types)
        tolerance.assert_close(y, exact, allowed)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    fmt=FORMAT,
    types=st.builds(Types, DTYPE, DTYPE),
    shape=st.tuples(ROWS, COLUMNS, GROUPS, st.sampled_from([0, 1])),
    batch=BATCH,
    symmetric=st.booleans(),
    int8=st.booleans(),
)
def test_packed_weights_give_the_same_bits(
    backend, seed, fmt, types, shape, batch, symmetric, int8
):
    """So every property of unpacked weights holds for packed ones."""
    x, w = make(seed, fmt, types, shape, batch)
    stored = as_symmetric(w)[0] if symmetric else w
    form = dict(batch=batch, symmetric=symmetric, int8=int8)
    unpacked, packed = (
        backend.matmul(x, stored, types, packed=packed, **form)
        for packed in (False, True)
    )
    np.testing.assert_array_equal(packed, unpacked)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**32),
    fmt=FORMAT,
    types=st.builds(Types, DTYPE, DTYPE),
    shape=st.tuples(ROWS, COLUMNS, GROUPS, st.just(0)),
    form=GATHERED,
    int8=st.booleans(),
)
def test_packed_weights_give_the_same_bits_in_all_that_multiplies(
    backend, seed, fmt, types, shape, form, int8
):
    x, gate = make(seed, fmt, types, shape)
    up = make(seed + 1, fmt, types, shape)[1]
    b = numbers.rounded(x[0, 0, 0] * np.ones(shape[1]), types.dtype)
    rows, stack, lhs, rhs = gathered(seed, fmt, types, shape[1], 2, form, False)
    results = [
        (
            backend.swiglu(x, gate, up, types, packed=packed, int8=int8),
            backend.matmul(x, gate, types, packed=packed, int8=int8, bias=b),
            backend.gather(rows, stack, lhs, rhs, types, packed=packed, int8=int8),
        )
        for packed in (False, True)
    ]
    for unpacked, packed in zip(*results, strict=True):
        np.testing.assert_array_equal(packed, unpacked)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    fmt=FORMAT,
    types=st.builds(Types, DTYPE, DTYPE),
    N=COLUMNS,
    groups=GROUPS,
)
def test_dequantize(backend, seed, fmt, types, N, groups):
    _, w = make(seed, fmt, types, (1, N, groups, 0))
    exact, magnitude = w.dequantize()[0], w.magnitude()[0]
    # One term: a product, a sum, and the rounding of the result.
    allowed = tolerance.bound(exact, magnitude, 1, types.dtype)
    tolerance.assert_close(backend.dequantize(w, types), exact, allowed)


@pytest.mark.parametrize("mode", FLOAT_MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_codes_and_all_scales_of_a_mode_of_floats(backend, mode, dtype):
    """The product of code and scale is exact in float32, and rounded once."""
    row = MODES[mode]
    (bits,), (group_size,) = row.bits, row.group_sizes
    codes = np.arange(max(2**bits, group_size)) % 2**bits
    words = np.tile(oracle.pack(codes, bits), (256, 1))
    groups = len(codes) // group_size
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], groups, 1)
    w = oracle.FloatWeights(words, scales, mode)
    with np.errstate(over="ignore"):
        exact = numbers.rounded(w.dequantize().astype(np.float32), dtype)
    y = backend.dequantize(w, Types(dtype, "float32"))
    np.testing.assert_array_equal(y, exact)
    known = ~np.isnan(exact)
    np.testing.assert_array_equal(np.signbit(y)[known], np.signbit(exact)[known])


@pytest.mark.parametrize("mode", FLOAT_MODES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 9, 40])
def test_scales_that_are_not_finite_stay_in_their_row(backend, mode, packed, rows):
    types = Types("float32", "float32")
    x, w = make(0, mode, types, (rows, 9, 3, 0))
    scales = w.scales.copy()
    scales[0, 4, 1] = 255  # infinite, or NaN
    y = backend.matmul(x, replace(w, scales=scales), types, packed=packed)
    assert not np.isfinite(y[0, :, 4]).any()
    assert np.isfinite(np.delete(y[0], 4, axis=1)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("int8", [False, True])
def test_what_is_not_finite_stays_so_and_in_its_row(backend, value, int8):
    types = Types("float32", "float32")
    x, w = make(0, (4, 64), types, (2, 40, 3, 0))
    x[0, 1, 70] = value
    y = backend.matmul(x, w, types, int8=int8)
    assert np.isfinite(y[0, 0]).all()
    assert not np.isfinite(y[0, 1]).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e35, 3.4e38])
@pytest.mark.parametrize("fmt", [(4, 64), (3, 32), (8, 128)])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_that_8_bits_cannot_express_are_exact(backend, value, fmt, packed):
    types = Types("float32", "float32")
    x, w = make(0, fmt, types, (3, 40, 3, 0))
    ordinary = backend.matmul(x, w, types, int8=True)
    x[0, 1, 70] = value
    y = backend.matmul(x, w, types, int8=True, packed=packed)
    exact = backend.matmul(x, w, types)
    np.testing.assert_array_equal(y[0, 1], exact[0, 1])
    np.testing.assert_array_equal(y[0, ::2], ordinary[0, ::2])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 40])
@pytest.mark.parametrize("fmt", [(8, 128), (6, 128), (4, 128), (2, 128), *FLOAT_MODES])
def test_the_largest_codes_and_activations_do_not_overflow(backend, fmt, rows, packed):
    """Sums of a group in 32 bits: 128 codes of 255 times 32639 are below 2^31."""
    types = Types("bfloat16", "float32")
    x, w = make(0, fmt, types, (rows, 17, 3, 0))
    if isinstance(fmt, str):
        largest = {4: 0x77777777, 8: 0x7E7E7E7E}[w.bits]
        w = replace(w, words=np.full_like(w.words, largest))
    else:
        ones = np.full_like(w.words, 2**32 - 1)
        w = replace(w, words=ones, biases=np.zeros_like(w.biases))
    x = np.where(x < 0, -2.0, 2.0).astype(x.dtype)
    for same in (x, abs(x), -abs(x)):
        y = backend.matmul(same, w, types, packed=packed)
        exact = oracle.matmul(same, w.dequantize())
        magnitude = oracle.matmul(abs(same), w.magnitude())
        allowed = tolerance.bound(exact, magnitude, x.shape[-1], types.dtype)
        allowed += rounding(backend, same, w, np.zeros(1, int), types)
        tolerance.assert_close(y, exact, allowed)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_activations_lose_less_than_their_own_rounding(backend, dtype):
    """On data without outliers; beside them the bound of a group holds."""
    types = Types(dtype, "float32")
    x, w = make(0, (4, 64), types, (4, 64, 64, 0))
    full = Types("float32", "float32")
    y, exact = backend.matmul(x, w, types), backend.matmul(x, w, full)
    rounded = numbers.rounded(exact, dtype)
    floor = tolerance.relative_rms(rounded, exact)
    assert tolerance.relative_rms(y, exact) <= 1.05 * floor


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_outlier_costs_its_group_no_more_than_half_a_step(backend, dtype):
    types = Types(dtype, "float32")
    x, w = make(0, (4, 64), types, (4, 64, 4, 0))
    x[0, :, 70] = 2.0**15
    y, exact = backend.matmul(x, w, types), oracle.matmul(x, w.dequantize())
    magnitude = oracle.matmul(abs(x), w.magnitude())
    allowed = tolerance.bound(exact, magnitude, x.shape[-1], dtype)
    allowed += rounding(backend, x, w, np.zeros(1, int), types)
    tolerance.assert_close(y, exact, allowed)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("fmt", [(4, 32), (4, 128), (8, 64), (2, 64), (3, 64)])
@given(
    rows=st.sampled_from([1, 4, 5, 7, 16, 17, 33, 50]),
    N=st.sampled_from([1, 16, 33, 64]),
    groups=st.integers(1, 12),
    packed=st.booleans(),
)
def test_tiles_give_the_bits_of_vectors(fmt, int8, rows, N, groups, packed):
    types = Types("float16", "float32")
    x, w = make(0, fmt, types, (rows, N, groups, 0))
    tiles, vectors = (
        start(isa).matmul(x, w, types, int8=int8, packed=packed, invariant=True)
        for isa in ("amx", "avx512_vnni")
    )
    np.testing.assert_array_equal(tiles, vectors)


def test_relative_rms_at_4096(backend):
    types = Types("float32", "float16")
    x, w = make(0, (4, 64), types, (4, 64, 64, 0))
    exact = oracle.matmul(x, w.dequantize())
    assert tolerance.relative_rms(backend.matmul(x, w, types), exact) <= 1e-6


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
@pytest.mark.parametrize(("asked", "expected"), [(None, 1), (1, 1), (3, 3)])
def test_threads_are_as_many_as_asked_for_or_as_cpus_are_usable(asked, expected):
    command = programs.native()
    if command is None:
        pytest.skip("only an editable installation has the CPU runner")
    one_cpu = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = Runner([sys.executable, "-c", one_cpu, *command], threads=asked)
    types = Types("float32", "float32")
    x, w = make(0, (4, 64), types, (8, 512, 8, 0))
    process.matmul(x, w, types)
    assert process.threads() == expected
    assert process.close() == 0


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NIBBLE_CPU_ISA", "sse9", "must be one of scalar, "),
        ("NIBBLE_NUM_THREADS", "0", "must be an integer from 1 to 1024 but got '0'"),
        ("NIBBLE_NUM_THREADS", "two", "but got 'two'"),
    ],
)
def test_environment_is_checked(monkeypatch, variable, value, message):
    command = programs.native()
    if command is None:
        pytest.skip("only an editable installation has the CPU runner")
    monkeypatch.setenv(variable, value)
    done = subprocess.run(command, input=b"", capture_output=True)
    assert done.returncode == 2
    assert message in done.stderr.decode()

"""The plans of the CPU backend: valid, complete, and thresholds where they belong."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_nibble.formats import BITS, GROUP_SIZES
from tests.cpu import plans, programs
from tests.cpu.plans import Profile
from tests.cpu.request import ACTIVATIONS, DTYPES, FLOAT_MODES, mode_form
from tests.cpu.runner import Runner

PARALLEL = 64 * 1024  # products that are worth a second thread
PARALLEL_COLUMNS = 256 * 1024
BLOCK_ROWS, WAVE_ROWS = 256, 512
MIN_ROWS, MIN_COLUMNS = 32, 256
KEY_UNIT = 128
FEW_FLOAT_ROWS = 2
ONE_MATRIX = (1, 1, 1, 1)  # a wave
BFLOAT16 = Profile(2, 24, 6, int16=True, bfloat16=True)

PROFILE = st.builds(
    Profile,
    threads=st.integers(1, 128),
    few_rows=st.sampled_from([2, 3, 24]),
    tile_rows=st.sampled_from([2, 3, 6]),
    packed_rows=st.sampled_from([3, 8]),
    packed_int8_rows=st.sampled_from([6, 32]),
    packed_int16_rows=st.sampled_from([4, 32]),
    int16=st.booleans(),
    bfloat16=st.booleans(),
)
DTYPE = st.sampled_from(DTYPES)
ROWS = st.one_of(st.integers(1, 40), st.integers(1, 5000))
SIZE = st.integers(1, 400).map(lambda n: 32 * n)
SHAPE = st.tuples(ROWS, st.integers(1, 20000), SIZE)


@functools.cache
def backend() -> Runner:
    command = programs.native()
    if command is None:
        pytest.skip("only an editable installation has the CPU runner")
    return Runner(command)


def chunks(total: int, step: int) -> list[tuple[int, int]]:
    return [(i, min(total, i + step)) for i in range(0, total, step)]


# From these numbers of rows on, integer codes in groups of 32, 64 and 128 are
# multiplied in tiles of bfloat16.
TILE_ROWS = {
    "bfloat16": {32: 32, 64: 64, 128: 256},
    "bfloat16_by_pair": {32: 48, 64: 96, 128: 192},
    "bfloat16_pair": {32: 64},
}


def activations(
    cpu: Profile,
    transpose: bool,
    int8: bool,
    dtype: str,
    rows: int,
    group_size: int = 32,
) -> str:
    if not transpose:
        return "exact"
    halves = {"bfloat16": "bfloat16_by_pair", "float16": "bfloat16_pair"}
    tiles = "bfloat16" if int8 else halves.get(dtype, "")
    least = TILE_ROWS.get(tiles, {}).get(group_size)
    if cpu.bfloat16 and least is not None and rows >= least:
        return tiles
    return "int8" if int8 else "int16" if cpu.int16 and dtype != "float32" else "exact"


@given(
    shape=SHAPE, cpu=PROFILE, transpose=st.booleans(), int8=st.booleans(), dtype=DTYPE
)
def test_a_plan_is_valid_and_first_among_the_candidates(
    shape, cpu, transpose, int8, dtype
):
    M, N, K = shape
    flags = {"transpose": transpose, "int8": int8, "dtype": dtype}
    p = plans.plan(backend(), M, N, K, cpu, **flags)
    assert p.all_supported
    assert p.is_first
    expected = activations(cpu, transpose, int8, dtype, M)
    assert ACTIVATIONS[p.activations] == expected
    assert p.few_rows == cpu.few_rows
    assert p.columns % (MIN_ROWS if transpose else MIN_COLUMNS) == 0
    assert p.block_rows == min(M, BLOCK_ROWS)
    assert 1 <= p.prepared_rows <= p.block_rows


@given(
    rows=st.integers(1, 300),
    group_size=st.sampled_from(GROUP_SIZES),
    bits=st.sampled_from(BITS),
    int8=st.booleans(),
    dtype=DTYPE,
    invariant=st.booleans(),
)
def test_many_rows_are_tiles_of_bfloat16_unless_rows_must_agree(
    rows, group_size, bits, int8, dtype, invariant
):
    form = {"transpose": True, "int8": int8, "dtype": dtype, "invariant": invariant}
    form |= {"group_size": group_size, "bits": bits}
    p = plans.plan(backend(), rows, 64, 256, BFLOAT16, **form)
    many = 0 if invariant else rows
    expected = activations(BFLOAT16, True, int8, dtype, many, group_size)
    assert ACTIVATIONS[p.activations] == expected


def activations_of_floats(mode: str, rows: int, int8: bool, invariant: bool) -> str:
    """Return what a CPU with tiles of bfloat16 makes of float16 activations."""
    if mode != "mxfp8" and rows <= FEW_FLOAT_ROWS and not invariant:
        return "int8" if int8 else "int16"
    return "bfloat16" if int8 else "bfloat16_pair"


@given(
    rows=st.integers(1, 40),
    mode=st.sampled_from(sorted(FLOAT_MODES)),
    int8=st.booleans(),
    invariant=st.booleans(),
)
def test_few_rows_of_small_floats_are_integers_unless_rows_must_agree(
    rows, mode, int8, invariant
):
    form = {"transpose": True, "int8": int8, "dtype": "float16"}
    form |= {"invariant": invariant} | mode_form(mode)
    p = plans.plan(backend(), rows, 64, 128, BFLOAT16, **form)
    expected = activations_of_floats(mode, rows, int8, invariant)
    assert ACTIVATIONS[p.activations] == expected


@given(
    B=st.integers(1, 300),
    M=st.sampled_from([1, 1, 2, 5]),
    experts=st.integers(1, 130),
    mode=st.sampled_from(sorted(FLOAT_MODES)),
    int8=st.booleans(),
    invariant=st.booleans(),
)
def test_the_rows_of_an_expert_on_average_decide_about_integers(
    B, M, experts, mode, int8, invariant
):
    form = {"transpose": True, "int8": int8, "dtype": "float16"}
    form |= {"invariant": invariant, "experts": experts} | mode_form(mode)
    p = plans.plan_gather(backend(), B, (M, 64, 128), BFLOAT16, ONE_MATRIX, **form)
    expected = activations_of_floats(mode, B * M // experts, int8, invariant)
    assert ACTIVATIONS[p.activations] == expected


@given(shape=SHAPE, cpu=PROFILE, transpose=st.booleans())
def test_chunks_keep_all_threads_busy_if_a_hand_over_pays(shape, cpu, transpose):
    M, N, K = shape
    p = plans.plan(backend(), M, N, K, cpu, transpose=transpose, int8=False)
    out = N if transpose else K
    unit = MIN_ROWS if transpose else MIN_COLUMNS
    ranges = chunks(out, p.columns)
    if M * N * K < (PARALLEL if transpose else PARALLEL_COLUMNS):
        assert len(ranges) == 1
    else:
        assert len(ranges) <= 4 * cpu.threads
        assert p.columns - unit < out / (4 * cpu.threads)
    assert M * (K if transpose else N) >= PARALLEL or p.prepared_rows == p.block_rows


@given(shape=SHAPE, cpu=PROFILE, transpose=st.booleans(), int8=st.booleans())
def test_chunks_never_grow_with_rows(shape, cpu, transpose, int8):
    M, N, K = shape
    flags = {"transpose": transpose, "int8": int8}
    one = plans.plan(backend(), M, N, K, cpu, **flags)
    more = plans.plan(backend(), M + 1, N, K, cpu, **flags)
    assert more.columns <= one.columns
    assert more.whole_rows == one.whole_rows
    if more.activations == one.activations:
        assert more.packed_rows == one.packed_rows


@given(
    rows=st.tuples(ROWS, ROWS),
    N=st.integers(1, 100),
    K=st.integers(1, 600).map(lambda n: 32 * n),
    cpus=st.tuples(PROFILE, PROFILE),
    int8=st.booleans(),
)
def test_the_depth_of_chunks_depends_on_the_weights_alone(rows, N, K, cpus, int8):
    """It has a part in the bits of a result."""
    depths = {
        plans.plan(backend(), M, N, K, cpu, transpose=True, int8=int8).depth
        for M, cpu in zip(rows, cpus, strict=True)
    }
    assert depths == {2048 if N <= 64 and K >= 4096 else K}


@pytest.mark.parametrize(
    ("int8", "dtype", "packed_rows"),
    [(False, "float32", 8), (False, "float16", 4), (True, "float32", 6)],
)
def test_each_width_has_its_limit_of_the_packed_layout(int8, dtype, packed_rows):
    limits = {"packed_rows": 8, "packed_int8_rows": 6, "packed_int16_rows": 4}
    cpu = Profile(2, 24, 6, **limits, int16=True)
    p = plans.plan(
        backend(), 1, 4096, 4096, cpu, transpose=True, int8=int8, dtype=dtype
    )
    assert p.packed_rows == packed_rows


@pytest.mark.parametrize(
    ("bits", "few_rows", "packed_rows"),
    [(2, 24, 3), (4, 24, 3), *((bits, 8, 8) for bits in (1, 3, 5, 6, 8))],
)
def test_codes_that_are_decoded_slowly_are_decoded_once(bits, few_rows, packed_rows):
    cpu = Profile(2, 24, 6)
    form = {"transpose": True, "int8": False, "bits": bits}
    p = plans.plan(backend(), 1, 4096, 4096, cpu, **form)
    assert (p.few_rows, p.packed_rows) == (few_rows, packed_rows)


@given(shape=SHAPE, cpu=PROFILE)
def test_rows_are_read_whole_while_x_fits_the_first_level_cache(shape, cpu):
    M, N, K = shape
    p = plans.plan(backend(), M, N, K, cpu, transpose=True, int8=False)
    assert (p.whole_rows >= M) == (4 * M * K <= 32 * 1024)


@pytest.mark.parametrize(
    ("shape", "columns"),
    [
        ((1, 4096, 4096), 512),
        ((128, 4096, 4096), 512),
        ((1, 576, 576), 96),
        ((1, 64, 576), 64),
        ((1, 49152, 576), 6144),
    ],
)
def test_columns_of_known_shapes_on_two_threads(shape, columns):
    p = plans.plan(backend(), *shape, Profile(2, 24, 6), transpose=True, int8=False)
    assert p.columns == columns


@given(
    B=st.integers(1, 3000),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 9000), SIZE),
    cpu=PROFILE,
    groups=st.integers(1, 60),
    largest=st.integers(1, BLOCK_ROWS),
    matrices=st.sampled_from([1, 2]),
    transpose=st.booleans(),
    int8=st.booleans(),
    dtype=DTYPE,
)
def test_gathered_products(
    B, shape, cpu, groups, largest, matrices, transpose, int8, dtype
):
    M, N, K = shape
    rows = largest + groups - 1
    wave = (groups, rows, largest, matrices)
    flags = {"transpose": transpose, "int8": int8, "dtype": dtype}
    p = plans.plan_gather(backend(), B, shape, cpu, wave, **flags)
    expected = activations(cpu, transpose, int8, dtype, B * M)
    assert ACTIVATIONS[p.activations] == expected
    assert p.block_rows == BLOCK_ROWS
    # A wave has room for every group, so that waves come to an end.
    assert p.wave_rows == min(B * M, WAVE_ROWS)
    assert 1 <= p.prepared_rows <= p.wave_rows
    unit = MIN_ROWS if transpose else MIN_COLUMNS
    assert p.columns > 0
    assert p.columns % unit == 0
    # Sums of a chunk stay in the second-level cache.
    assert p.columns == unit or p.columns * matrices * largest <= 64 * 1024
    out = N if transpose else K
    few = rows * N * K < (PARALLEL if transpose else PARALLEL_COLUMNS)
    most = 1 if few else -(-p.chunks // groups)
    cap = max(unit, 64 * 1024 // (matrices * largest) // unit * unit)
    assert len(chunks(out, p.columns)) <= most or p.columns == cap


ATTENTION = st.tuples(
    st.integers(1, 8),  # B
    st.sampled_from([(1, 1), (8, 2), (9, 3), (32, 32), (64, 1), (300, 1)]),
    st.integers(1, 700),  # L
    st.integers(1, 9000),  # S
    st.sampled_from([64, 80, 128]),  # D
    st.booleans(),
)


def attention_shape(case) -> tuple[int, ...]:
    B, (heads, kv_heads), L, S, D, invariant = case
    return (B, heads, kv_heads, L, S, D, D, int(invariant))


@given(case=ATTENTION, cpu=PROFILE)
def test_attention_covers_all_positions_and_keys_once(case, cpu):
    B, (heads, kv_heads), L, S, _, invariant = case
    p = plans.plan_attention(backend(), attention_shape(case), cpu)
    assert len(chunks(L, p.positions)) == p.blocks
    assert len(chunks(S, p.split_keys)) == p.splits
    assert p.chunks == B * kv_heads * p.blocks * p.splits
    assert p.positions == 1 or p.positions * (heads // kv_heads) <= 128
    assert p.split_keys % KEY_UNIT == 0
    if invariant:
        assert p.split_keys == 512
        assert p.few_queries == 2**31 - 1
    else:
        assert p.splits == 1 or p.split_keys >= 2 * KEY_UNIT
        assert p.few_queries == 4 * cpu.tile_rows


@given(case=ATTENTION, cpu=PROFILE)
def test_attention_runs_on_one_thread_below_the_threshold(case, cpu):
    B, (heads, _), L, S, D, _ = case
    p = plans.plan_attention(backend(), attention_shape(case), cpu)
    assert p.parallel == (B * heads * L * S * 2 * D >= PARALLEL)

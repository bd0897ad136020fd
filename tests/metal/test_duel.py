"""Duels on the stand-in GPU, whose clock the tests move, and what follows."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_nibble import _native
from mlx_nibble.machine import duel, first_use, tuned_table
from mlx_nibble.machine.first_use import ON_OURS, SLOWER, UNKNOWN, WRONG
from mlx_nibble.machine.tuned_table import DUEL, LEAVE_TO_MLX, Choice
from tests.metal.clocked import (
    CLASSES,
    EXPERTS,
    FORM,
    Gpu,
    by_rows,
    gathers_ours,
    is_ours,
    operands,
    start,
)


@pytest.mark.parametrize(
    ("theirs", "wins"),
    [(1.5, True), (1.05, True), (1.01, False), (1.0, False), (0.5, False)],
)
def test_the_faster_wins_and_a_tie_is_mlx_s(gpu, theirs, wins):
    gpu.theirs = lambda rows: 2e-3 * theirs
    found = start(gpu)
    standing = by_rows(found.settle([FORM], tuned=True))
    assert standing == dict.fromkeys(CLASSES, ON_OURS if wins else SLOWER)
    number = found.number(True)
    for rows in (1, 2, 7, 12, 32, 33, 500, 1000):
        assert is_ours(gpu, number, rows) == wins
        # Rows that do not depend on each other only need to be right.
        assert is_ours(gpu, number, rows, batch_invariant=True)
    stored = tuned_table.load()
    assert {key.rows for key in stored} == set(CLASSES)
    assert {(c.name, c.by) for c in stored.values()} == {
        (None if wins else LEAVE_TO_MLX, DUEL)
    }


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 6, 16, 33, 512])
def test_a_class_is_won_with_each_of_its_kernels_and_at_its_most_rows(gpu, rows):
    gpu.theirs = lambda m: 1e-3 if m == rows else 4e-3
    standing = by_rows(start(gpu).settle([FORM], tuned=True))
    lost = next(largest for largest in CLASSES if rows <= largest)
    assert standing == {r: SLOWER if r == lost else ON_OURS for r in CLASSES}


@pytest.mark.parametrize("form", [FORM, EXPERTS, replace(FORM, N=4096, K=4096)])
@pytest.mark.parametrize("device", ["g13g", "g14s", "g16d"])
def test_every_kernel_of_a_class_has_a_trial(gpu, form, device):
    gpu.recorder.configure(f"applegpu_{device}")
    for key in first_use.keys_of(form):
        timed = duel.rows_of(key, gpu)
        kernels = duel.kernels_of(key, gpu)
        for rows in range(timed[0], min(timed[-1], 512) + 1):
            assert set(gpu.kernels_of(replace(key, rows=rows).shape)) <= set(kernels)


def test_a_wrong_kernel_is_not_timed_and_the_reason_is_not_kept_as_slow(gpu):
    (skinny,) = gpu.kernels_of(replace(FORM, rows=8).shape)
    gpu.wrong = {skinny}
    found = start(gpu)
    with pytest.warns(RuntimeWarning, match=skinny):
        standing = by_rows(found.settle([FORM], tuned=True))
    assert standing == {r: WRONG if r == 8 else ON_OURS for r in CLASSES}
    assert 8 not in gpu.timed and not is_ours(gpu, found.number(True), 8)
    assert {key.rows for key in tuned_table.load()} == set(CLASSES) - {8}


def test_without_a_verdict_mlx_computes(gpu):
    number = start(gpu).number(True)
    assert not any(is_ours(gpu, number, rows) for rows in (1, 2, 8, 64, 512))
    assert not gathers_ours(gpu, number, 8)
    _, *matrix = operands(1)
    rows = gpu.recorder.dequantize(*matrix, tuning=number)
    assert gpu.recorder.node(rows) != "NibbleDequantize"
    assert gpu.tried == []
    # Without a table, being right is enough.
    assert is_ours(gpu, 0, 8) and gathers_ours(gpu, 0, 8)
    rows = gpu.recorder.dequantize(*matrix)
    assert gpu.recorder.node(rows) == "NibbleDequantize"


@pytest.mark.parametrize("samples", [12, 10**9])
def test_a_timing_beside_other_work_does_not_count(gpu, samples):
    """Three samples in five take three times as long while the GPU works for others."""
    launch = itertools.count()

    def busy(kernel, rows):
        number = next(launch)
        return 2e-3 * (3 if number < samples and number % 5 < 3 else 1)

    gpu.ours = busy
    choice = duel.hold(FORM, gpu)
    if samples == 12:
        assert choice is not None and choice.name is None
        assert choice.faster == pytest.approx(2)
    else:
        assert choice is None
        standing = by_rows(start(gpu, hold=lambda *_: None).settle([FORM], True))
        assert set(standing.values()) == {UNKNOWN} and tuned_table.load() == {}


class Traced(Exception):
    """The graph is built; MLX cannot evaluate it here."""


def traced_is_ours(gpu: Gpu, number: int, rows: int, **options) -> bool:
    _, *weights = operands(1)
    seen = []

    def product(x):
        y = gpu.recorder.quantized_matmul(x, *weights, tuning=number, **options)
        seen.append(gpu.recorder.node(y).startswith("Nibble"))
        raise Traced

    with contextlib.suppress(Traced):
        mx.compile(product, shapeless=True)(operands(rows)[0])
    return seen[0]


@pytest.mark.parametrize("lost", [None, *CLASSES, "untimed"])
def test_a_graph_of_unknown_rows_needs_every_class(gpu, lost):
    found = start(gpu)
    number = found.number(True)
    keys = first_use.keys_of(FORM)
    table = {key: Choice(None, 1.5, DUEL) for key in keys}
    if lost == "untimed":
        del table[keys[3]]
    elif lost:
        table[replace(FORM, rows=lost)] = Choice(LEAVE_TO_MLX, 1.5, DUEL)
    gpu.replace_tuning(number, tuned_table.choices(table))
    assert traced_is_ours(gpu, number, 1) == (lost is None)
    assert traced_is_ours(gpu, number, 1, batch_invariant=True)


def test_gradients_are_mlx_s(gpu):
    """Nobody times products that are not transposed."""
    found = start(gpu)
    found.settle([FORM], tuned=True)
    x = mx.zeros((4, FORM.N), mx.float16)
    _, *weights = operands(1)
    y = gpu.recorder.quantized_matmul(
        x, *weights, transpose=False, tuning=found.number(True)
    )
    assert gpu.recorder.node(y) == "QuantizedMatmul"


def test_prompts_on_neural_accelerators_are_mlx_s_until_a_duel_is_won(gpu):
    gpu.recorder.set_gpu_facts(lambda: (10, True, True))
    found = start(gpu)
    number = found.number(True)
    assert not is_ours(gpu, 0, 512) and is_ours(gpu, 0, 32)
    assert not is_ours(gpu, number, 512)
    gpu.theirs = lambda rows: 4e-3 if rows > 128 else 1e-3
    found.settle([FORM, EXPERTS], tuned=True)
    assert is_ours(gpu, number, 512) and not is_ours(gpu, number, 64)
    assert gathers_ours(gpu, number, 4096, sorted_indices=True)
    assert not gathers_ours(gpu, 0, 4096, sorted_indices=True)


def test_experts_have_verdicts_of_their_own(gpu):
    gpu.theirs = lambda rows: 4e-3 if rows <= 8 else 1e-3
    found = start(gpu)
    standing = found.settle([EXPERTS], tuned=True)
    assert {(k.rows, k.sorted) for k in standing} == {
        *((rows, False) for rows in CLASSES[:-1]),
        (128, True),
        (512, True),
    }
    number = found.number(True)
    assert gathers_ours(gpu, number, 8) and not gathers_ours(gpu, number, 16)
    assert not gathers_ours(gpu, number, 4096, sorted_indices=True)
    assert not is_ours(gpu, number, 1)  # one matrix was not timed
    assert {1, 2, 8, 9} <= set(gpu.timed) and max(gpu.timed) <= 129


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    won=st.sets(st.sampled_from(CLASSES)),
    lost=st.sets(st.sampled_from(CLASSES)),
    right=st.booleans(),
    rows=st.integers(1, 600),
    neural=st.booleans(),
)
def test_never_ours_without_a_verdict(gpu, won, lost, right, rows, neural):
    gpu.recorder.set_gpu_facts(lambda: (10, neural, True))
    key = next(k for k in first_use.keys_of(FORM) if rows <= k.rows or k.rows == 512)
    kernels = gpu.kernels_of(replace(FORM, rows=rows).shape)
    gpu.recorder.set_judge(lambda kernel: right or kernel not in kernels)
    number = gpu.add_tuning([], True)
    table = {replace(FORM, rows=r): Choice(None, 1.5, DUEL) for r in won}
    table |= {replace(FORM, rows=r): Choice(LEAVE_TO_MLX, 1.5, DUEL) for r in lost}
    gpu.replace_tuning(number, tuned_table.choices(table))
    wins = key.rows in won - lost
    assert is_ours(gpu, number, rows) == (wins and right)


@pytest.mark.parametrize(
    ("ours", "theirs", "gain"),
    [
        ([1, 1, 1, 1, 1], [2, 2, 2, 2, 2], 2),
        ([1, 1, 1, 1, 9], [2, 2, 2, 2, 2], 2),
        ([1, 1, 1, 9, 9], [2, 2, 2, 2, 2], 1),
        ([2, 2, 2, 2, 2], [1, 1, 1, 1, 1], 0.5),
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], 1),
    ],
)
def test_the_decision_is_a_function_of_the_samples(ours, theirs, gain):
    assert duel.decide(ours, theirs) == gain


@pytest.mark.parametrize("form", [FORM, EXPERTS])
@pytest.mark.parametrize(("N", "K"), [(128_256, 4096), (96, 128), (14_336, 4096)])
def test_what_is_timed_has_the_real_kernel_and_a_capped_size(gpu, form, N, K):
    for key in first_use.keys_of(replace(form, N=N, K=K)):
        for rows in duel.rows_of(key, gpu):
            case = duel.case_of(key, rows, gpu)
            assert gpu.kernels_of(case.shape, case.kernel) == gpu.kernels_of(
                replace(key, rows=rows).shape
            )
            nbytes = case.N * K * max(form.experts, 1) * 5 / 8
            assert case.N == N or nbytes <= 2 * duel._LARGEST_WEIGHTS


@pytest.mark.parametrize("form", [FORM, EXPERTS, replace(EXPERTS, sorted=True)])
def test_mlx_takes_the_same_arrays(tables, monkeypatch, form):
    """Here MLX's own operations run, on the CPU."""
    monkeypatch.setattr(duel, "_ALL_WEIGHTS", 1)
    for rows in (1, 7):
        chains = duel.chains_of(duel.Case(form, rows, 64, "none"), _native.ext)
        for chain in chains.values():
            chain(2)

"""Duels on the stand-in GPU, whose clock the tests move: who computes what, and why."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlx_nibble
from mlx_nibble import _ext, _native, ops
from mlx_nibble.acceleration import measured
from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.machine import duel, first_use, trial, tuned_table, turns
from mlx_nibble.machine.first_use import OURS, SLOWER, UNKNOWN, WRONG, FirstUse
from mlx_nibble.machine.trial import Verdict
from mlx_nibble.machine.tuned_table import DUEL, LEAVE_TO_MLX, Choice, Key
from mlx_nibble.machine.verdicts import Machine, Verdicts
from tests.metal.test_self_check import dead_process

MACHINE = Machine("applegpu_g14s", "macOS 15.1", "0.32.4", "0.1.0")
FORM = Key(1, 96, 192, 4, 64, "float16", "float16")
EXPERTS = replace(FORM, experts=4)
CLASSES = (1, 5, 8, 16, 32, 128, 512)


class Gpu:
    """The stand-in GPU, its clock, and the extension as mlx_nibble sees it.

    Attributes:
        now: Seconds of the clock.
        ours: Function of kernel and rows: seconds of one of our launches.
        theirs: Function of the rows: seconds of MLX's operation.
        wrong: Kernels that fail their trial.
        tried: Kernels that had a trial.
        timed: Rows of our products that were launched.
    """

    def __init__(self, recorder) -> None:
        self.recorder = recorder
        self.now = 0.0
        self.ours = lambda kernel, rows: 2e-3
        self.theirs = lambda rows: 4e-3
        self.wrong: set[str] = set()
        self.tried: list[str] = []
        self.timed: list[int] = []
        self.compiling = 0.0
        self._rows = 0

    def __getattr__(self, name):
        return getattr(_ext, name)

    def perf_counter(self) -> float:
        return self.now

    def launch(self, dispatch) -> None:
        self.now += self.ours(dispatch.kernel, self._rows)

    def check(self, kernel, ext):
        self.tried.append(kernel)
        return Verdict(kernel, "wrong results" if kernel in self.wrong else None)

    # What the stand-in answers in place of the extension.
    def row_classes(self):
        return self.recorder.row_classes(stream=self.recorder.stream)

    def add_tuning(self, choices, complete=False):
        stream = self.recorder.stream
        return self.recorder.add_tuning(choices, complete, stream=stream)

    def replace_tuning(self, number, choices):
        self.recorder.replace_tuning(number, choices)

    def kernels_of(self, shape, choice=""):
        return self.recorder.kernels_of(shape, choice)

    def joining_kernels(self, shape):
        return self.recorder.joining_kernels(shape)

    def compile_kernels(self, kernels):
        self.now += self.compiling * len(kernels)
        self.recorder.compile_kernels(kernels)

    def trusted(self, kernels):
        return self.recorder.trusted(kernels)

    def _computed(self, product, x, *arrays, **options):
        """Launch a product at once: MLX cannot evaluate on this GPU."""
        self._rows = x.size // x.shape[-1]
        self.timed.append(self._rows)
        y = product(x, *arrays, stream=self.recorder.stream, **options)
        assert self.recorder.node(y).startswith("Nibble")
        self.recorder.evaluate(y)
        return mx.zeros(y.shape, y.dtype)

    def quantized_matmul(self, x, *arrays, bias=None, residual=None, stream, **options):
        mx.eval(x)
        return self._computed(
            self.recorder.module.quantized_matmul, x, *arrays, **options
        )

    def gather_qmm(self, x, w, s, b, lhs, rhs, *form, stream, **options):
        lhs = mx.arange(rhs.size).astype(mx.uint32)
        arrays = (x, w, s, b, lhs, rhs.astype(mx.uint32))
        mx.eval(arrays)
        product = self.recorder.module.gather_qmm
        return self._computed(product, *arrays, *form, **options)


class Device:
    type = mx.DeviceType.gpu


@pytest.fixture
def gpu(recorder, tables, monkeypatch):
    """A GPU that is new to this user."""
    made = Gpu(recorder)

    def mlx(x, w, *arrays, rhs_indices=None, **form):
        rows = x.size // x.shape[-1]
        made.now += made.theirs(rows)
        return mx.zeros((*x.shape[:-1], w.shape[-2]), x.dtype)

    monkeypatch.setattr(_native, "ext", made)
    monkeypatch.setattr(mx, "default_device", lambda: Device)
    monkeypatch.setattr(mx, "quantized_matmul", mlx)
    monkeypatch.setattr(mx, "gather_qmm", mlx)
    monkeypatch.setattr(turns, "time", made)
    monkeypatch.setattr(first_use, "time", made)
    monkeypatch.setattr(trial, "check", made.check)
    monkeypatch.setattr(trial, "gpu_is_sound", lambda: True)
    monkeypatch.setattr(duel, "_ALL_WEIGHTS", 1)
    monkeypatch.setattr(Machine, "here", lambda: MACHINE)
    monkeypatch.setattr(first_use, "_here", [])
    recorder.set_executor(made.launch)
    yield made
    recorder.set_judge(None)


def start(gpu: Gpu, **options) -> FirstUse:
    """Start a process: the extension knows nothing, files are as they are."""
    judge = Verdicts(MACHINE, gpu)
    gpu.recorder.set_judge(judge)
    return FirstUse(gpu, judge, **options)


def operands(rows: int, form: Key = FORM):
    x = mx.zeros((rows, form.K), ops.DTYPES[form.dtype])
    w = mx.zeros((form.N, form.K * form.bits // 32), mx.uint32)
    scales = mx.ones((form.N, form.K // form.group_size), ops.DTYPES[form.scale_dtype])
    # Not symmetric by their values, but nobody has looked.
    arrays = (x, w, scales, scales * 3)
    mx.eval(arrays)
    return arrays


def is_ours(gpu: Gpu, number: int, rows: int, **options) -> bool:
    """Return whether a product becomes a node of ours, as a layer builds it."""
    y = gpu.recorder.quantized_matmul(*operands(rows), tuning=number, **options)
    return gpu.recorder.node(y).startswith("Nibble")


def gathers_ours(gpu: Gpu, number: int, rows: int, **options) -> bool:
    _, w, scales, biases = operands(1)
    experts = [mx.contiguous(mx.stack([a] * 4)) for a in (w, scales, biases)]
    x = mx.zeros((rows, 1, FORM.K), mx.float16)
    rhs = mx.zeros((rows,), mx.uint32)
    mx.eval(x, experts, rhs)
    y = gpu.recorder.gather_qmm(x, *experts, None, rhs, tuning=number, **options)
    return gpu.recorder.node(y).startswith("Nibble")


def by_rows(standing) -> dict[int, str]:
    return {key.rows: why for key, why in standing.items()}


@pytest.mark.parametrize(
    ("theirs", "wins"),
    [(1.5, True), (1.05, True), (1.01, False), (1.0, False), (0.5, False)],
)
def test_the_faster_wins_and_a_tie_is_mlx_s(gpu, theirs, wins):
    gpu.theirs = lambda rows: 2e-3 * theirs
    found = start(gpu)
    standing = by_rows(found.settle([FORM], tuned=True))
    assert standing == dict.fromkeys(CLASSES, OURS if wins else SLOWER)
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
    assert standing == {r: SLOWER if r == lost else OURS for r in CLASSES}


@pytest.mark.parametrize("form", [FORM, EXPERTS, replace(FORM, N=4096, K=4096)])
def test_every_kernel_of_a_class_has_a_trial(gpu, form):
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
    assert standing == {r: WRONG if r == 8 else OURS for r in CLASSES}
    assert 8 not in gpu.timed and not is_ours(gpu, found.number(True), 8)
    assert {key.rows for key in tuned_table.load()} == set(CLASSES) - {8}


def test_without_a_verdict_mlx_computes(gpu):
    number = start(gpu).number(True)
    assert not any(is_ours(gpu, number, rows) for rows in (1, 2, 8, 64, 512))
    assert not gathers_ours(gpu, number, 8)
    assert gpu.tried == []


def test_verdicts_are_kept_and_read_back(gpu):
    start(gpu).settle([FORM], tuned=True)
    gpu.tried, gpu.timed = [], []
    later = start(gpu)
    assert set(by_rows(later.settle([FORM], tuned=True)).values()) == {OURS}
    assert gpu.tried == [] and gpu.timed == []
    for field in ("gpu", "system", "mlx", "mlx_nibble"):
        if field in ("mlx", "mlx_nibble"):
            continue  # the versions of this process
        other = replace(MACHINE, **{field: "another"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Machine, "here", lambda other=other: other)
            assert tuned_table.load() == {}


def test_the_first_token_waits_for_nothing(gpu):
    """All that a token needs is compiled and tried when accelerate() returns."""
    found = start(gpu)
    found.settle([FORM], tuned=True)
    compiled, tried, now = list(gpu.recorder.compiled()), list(gpu.tried), gpu.now
    x, *weights = operands(1)
    products = [
        gpu.recorder.quantized_matmul(x, *weights, tuning=found.number(True))
        for _ in range(2)
    ]
    assert gpu.now == now
    kernels = []
    gpu.recorder.set_executor(lambda dispatch: kernels.append(dispatch.kernel))
    for y in products:
        gpu.recorder.evaluate(y)
    assert [kernel.split("_f16")[0] for kernel in kernels] == ["joint_qmv"]
    assert (gpu.recorder.compiled(), gpu.tried) == (compiled, tried)


def test_a_second_process_compiles_what_it_uses_before_the_first_token(gpu):
    start(gpu).settle([FORM], tuned=True)
    gpu.recorder.configure()
    later = start(gpu)
    later.settle([FORM], tuned=True)
    compiled = list(gpu.recorder.compiled())
    assert compiled
    for rows in (1, 2, 3, 4, 5, 7, 20, 40, 300, 2000):
        y = gpu.recorder.quantized_matmul(*operands(rows), tuning=later.number(True))
        gpu.recorder.evaluate(y)
    assert gpu.recorder.compiled() == compiled


def test_kernels_that_join_products_are_not_tried_for_a_token(gpu):
    """A lost self-check file: products are tried at their use, joint ones are not."""
    start(gpu).settle([FORM], tuned=True)
    found = start(gpu)
    found._judge.path.unlink()
    table = tuned_table.load()
    number = found.number(True)
    gpu.replace_tuning(number, tuned_table.choices(table))
    gpu.tried = []
    x, *weights = operands(1)
    products = [
        gpu.recorder.quantized_matmul(x, *weights, tuning=number) for _ in range(2)
    ]
    kernels = []
    gpu.recorder.set_executor(lambda dispatch: kernels.append(dispatch.kernel))
    for y in products:
        gpu.recorder.evaluate(y)
    assert gpu.tried == kernels[:1] and len(set(kernels)) == 1


def test_a_duel_that_ended_its_process_is_not_held_again(gpu):
    (qmv,) = gpu.kernels_of(FORM.shape)
    judge = Verdicts(MACHINE, gpu)
    marked = []

    def killed(key, ext):
        if key.rows == 1:
            marked.append(judge.path.read_text())
            raise KeyboardInterrupt
        return Choice(None, 1.5, DUEL)

    gpu.recorder.set_judge(judge)
    with pytest.raises(KeyboardInterrupt):
        FirstUse(gpu, judge, killed).settle([FORM], tuned=True)
    # Ctrl-C leaves no mark; a killed process leaves the file as it was.
    assert json.loads(judge.path.read_text())["trying"] == {}
    stored = json.loads(marked[0])
    assert stored["trying"] == {qmv: os.getpid()}
    stored["trying"][qmv] = dead_process()
    judge.path.write_text(json.dumps(stored))
    found = start(gpu)
    with pytest.warns(RuntimeWarning, match="last trial did not end"):
        standing = by_rows(found.settle([FORM], tuned=True))
    assert standing.pop(1) == WRONG and set(standing.values()) == {OURS}
    assert 1 not in gpu.timed and not is_ours(gpu, found.number(True), 1)


def test_what_was_found_before_ctrl_c_is_kept(gpu):
    def stop(key, ext):
        if key.rows == 512:
            raise KeyboardInterrupt
        return Choice(None, 1.5, DUEL)

    found = start(gpu, hold=stop)
    with pytest.raises(KeyboardInterrupt):
        found.settle([FORM], tuned=True)
    assert [key.rows for key in tuned_table.load()] == [1]
    assert is_ours(gpu, found.number(True), 1)


def test_a_gpu_that_fails_ends_the_duels_of_this_call(gpu):
    def fail(key, ext):
        raise RuntimeError("[METAL] Command buffer execution failed: out of memory")

    found = start(gpu, hold=fail)
    standing = by_rows(found.settle([FORM], tuned=True))
    assert set(standing.values()) == {UNKNOWN} and tuned_table.load() == {}
    later = start(gpu)
    assert set(by_rows(later.settle([FORM], tuned=True)).values()) == {OURS}


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
        assert choice == Choice(None, pytest.approx(2, rel=0.2), DUEL)
    else:
        assert choice is None
        standing = by_rows(start(gpu, hold=lambda *_: None).settle([FORM], True))
        assert set(standing.values()) == {UNKNOWN} and tuned_table.load() == {}


def test_the_most_useful_duels_come_first_within_the_budget(gpu):
    held = []

    def hold(key, ext):
        held.append(key.rows)
        gpu.now += 1
        return Choice(None, 1.5, DUEL)

    other = replace(FORM, N=160)
    found = start(gpu, hold=hold, seconds=3)
    standing = found.settle([FORM, other, FORM], tuned=True)
    assert held == [1, 1, 512]
    assert [list(standing.values()).count(w) for w in (OURS, UNKNOWN)] == [3, 11]
    assert not is_ours(gpu, found.number(True), 8)
    # The next call goes on, in this process or in another.
    found.settle([FORM, other], tuned=True)
    assert held[3:] == [512, 128, 128]
    start(gpu, hold=hold, seconds=100).settle([FORM, other], tuned=True)
    assert held[6:] == [5, 5, 8, 8, 16, 16, 32, 32]


def test_compiling_counts_too(gpu):
    gpu.compiling = 3.0
    found = start(gpu, seconds=5)
    standing = by_rows(found.settle([FORM], tuned=True))
    assert standing[1] == UNKNOWN and gpu.timed == []
    # The kernels of this stage are there by now.
    assert by_rows(found.settle([FORM], tuned=True))[1] == OURS


def test_more_than_a_second_is_one_line(gpu, monkeypatch, capsys):
    monkeypatch.setattr(first_use, "_SAID_AFTER", 0.0)

    def hold(key, ext):
        found_line.wait(10)
        return Choice(None, 1.5, DUEL)

    import threading

    found_line = threading.Event()
    say = first_use._say
    monkeypatch.setattr(first_use, "_say", lambda s: (say(s), found_line.set()))
    start(gpu, hold=hold).settle([FORM], tuned=True)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "up to 5 seconds" in said
    monkeypatch.setattr(first_use, "_SAID_AFTER", 60.0)
    start(gpu).settle([FORM], tuned=True)
    assert capsys.readouterr().err == ""


def test_tune_overrules_a_duel(gpu):
    key = replace(FORM, rows=8)
    tuned_table.save({key: Choice(LEAVE_TO_MLX, 1.1)})
    found = start(gpu)
    assert by_rows(found.settle([FORM], tuned=True))[8] == SLOWER
    assert 8 not in gpu.timed and not is_ours(gpu, found.number(True), 8)
    # Without the choices of tune, the duel decides; it does not replace them.
    assert by_rows(found.settle([FORM], tuned=False))[8] == OURS
    assert is_ours(gpu, found.number(False), 8)
    assert tuned_table.load()[key] == Choice(LEAVE_TO_MLX, 1.1)
    # Another candidate of tune runs, and is compiled before the first token.
    (name,) = set(gpu.recorder.candidates(key.shape, stream=gpu.recorder.stream)[1:2])
    tuned_table.save({key: Choice(name, 1.3)})
    gpu.recorder.configure()
    found = start(gpu)
    assert by_rows(found.settle([FORM], tuned=True))[8] == OURS
    compiled, kernels = list(gpu.recorder.compiled()), []
    gpu.recorder.set_executor(lambda dispatch: kernels.append(dispatch.kernel))
    y = gpu.recorder.quantized_matmul(*operands(8), tuning=found.number(True))
    gpu.recorder.evaluate(y)
    assert kernels == [name] and gpu.recorder.compiled() == compiled


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
    assert {63, 64, 4096} <= set(gpu.timed) | {63, 64, 4096}


def shared_settings():
    return settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
    )


@shared_settings()
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


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(192, 96, bias=False) for _ in range(3)]
        self.head = nn.Linear(192, 160, bias=False)
        for layer in (*self.layers, self.head):
            layer.weight = mx.random.normal(layer.weight.shape)
        nn.quantize(self, 64, 4)
        self.set_dtype(mx.float16)
        mx.eval(self.parameters())


@pytest.fixture
def judged(gpu, monkeypatch):
    """A process whose GPU `accelerate` finds."""
    judge = Verdicts(MACHINE, gpu)
    gpu.recorder.set_judge(judge)
    monkeypatch.setattr("mlx_nibble.machine.verdicts.of_gpu", lambda: judge)
    return gpu


def test_accelerate_says_who_computes_what_and_why(judged):
    judged.theirs = lambda rows: 4e-3 if rows < 100 else 2e-3
    report = mlx_nibble.accelerate(Model())
    said = str(report)
    assert f"   4 with 1 row: {OURS}" in said
    assert f"   4 with 2 to 5 rows: {OURS}" in said
    assert f"   4 with 129 rows or more: {SLOWER}" in said
    forms = {(key.N, key.K) for key in tuned_table.load()}
    assert forms == {(96, 192), (160, 192)}
    (number,) = {swap.rebound._options.tuning for swap in report.swapped}
    assert is_ours(judged, number, 1) and not is_ours(judged, number, 300)
    assert "tune" not in said  # no layer has a choice of it


def test_accelerate_again_changes_no_layer_and_times_nothing(judged):
    model = Model()
    mlx_nibble.accelerate(model)
    judged.timed = []
    report = mlx_nibble.accelerate(model)
    assert report.unchanged == 4 and judged.timed == []
    assert f"   4 with 1 row: {OURS}" in str(report)


@pytest.mark.parametrize("options", [{"duel": False}, {"batch_invariant": True}])
def test_without_a_duel_being_right_is_enough(judged, options):
    judged.theirs = lambda rows: 1e-5
    report = mlx_nibble.accelerate(Model(), **options)
    assert report.measured == {} and judged.timed == [] and tuned_table.load() == {}
    (number,) = {swap.rebound._options.tuning for swap in report.swapped}
    assert number == 0
    # Verdicts of an earlier duel are not followed.
    mlx_nibble.accelerate(Model())
    report = mlx_nibble.accelerate(Model(), **options)
    (number,) = {swap.rebound._options.tuning for swap in report.swapped}
    assert is_ours(judged, number, 1)


def test_without_a_gpu_nothing_is_timed(gpu, monkeypatch):
    nobody = Verdicts(replace(MACHINE, gpu=""), gpu)
    monkeypatch.setattr("mlx_nibble.machine.verdicts._installed", [nobody])
    assert measured.of_gpu(Settings()) is None
    monkeypatch.setattr("mlx_nibble.machine.verdicts._installed", [])
    assert measured.of_gpu(Settings()) is None


def test_a_cpu_has_no_duel(tables):
    report = mlx_nibble.accelerate(Model())
    assert report.measured == {} and not tables.exists()
    assert "row" not in str(report)


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

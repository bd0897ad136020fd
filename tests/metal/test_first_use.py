"""The duels of a model: when they are held, kept and followed."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_nibble
from mlx_nibble import _native
from mlx_nibble.acceleration import measured
from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.formats import FLOAT_MODES
from mlx_nibble.machine import first_use, tuned_table
from mlx_nibble.machine.first_use import ON_OURS, SLOWER, UNKNOWN, WRONG, FirstUse
from mlx_nibble.machine.tuned_table import DUEL, LEAVE_TO_MLX, Choice
from mlx_nibble.machine.verdicts import Machine, Verdicts
from tests.metal.clocked import (
    FORM,
    MACHINE,
    by_rows,
    is_ours,
    operands,
    start,
)
from tests.metal.conftest import VIEW
from tests.metal.test_self_check import dead_process


def test_verdicts_are_kept_and_read_back(gpu):
    start(gpu).settle([FORM], tuned=True)
    gpu.tried, gpu.timed = [], []
    later = start(gpu)
    assert set(by_rows(later.settle([FORM], tuned=True)).values()) == {ON_OURS}
    assert gpu.tried == [] and gpu.timed == []
    assert tuned_table.load()
    for field in ("gpu", "system", "mlx", "mlx_nibble"):
        other = replace(MACHINE, **{field: "another"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Machine, "here", lambda other=other: other)
            if field == "mlx":
                patch.setattr(_native, "mlx_version", "another")
            elif field == "mlx_nibble":
                patch.setattr(tuned_table, "__version__", "another")
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
    assert gpu.tried == [VIEW, kernels[0]] and len(set(kernels)) == 1


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
    assert stored["trying"] == {qmv: {str(os.getpid()): 1}}
    stored["trying"][qmv] = {dead_process(): 1, dead_process(): 1}
    judge.path.write_text(json.dumps(stored))
    found = start(gpu)
    with pytest.warns(RuntimeWarning, match="last trial did not end"):
        standing = by_rows(found.settle([FORM], tuned=True))
    assert standing.pop(1) == WRONG and set(standing.values()) == {ON_OURS}
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


def test_a_gpu_that_fails_ends_the_duels_of_this_call(gpu, monkeypatch):
    held = []

    def fail(key, ext):
        held.append(key.rows)
        raise RuntimeError("[METAL] Command buffer execution failed: out of memory")

    found = start(gpu, hold=fail)
    monkeypatch.setattr("mlx_nibble.machine.trial.gpu_is_sound", lambda: False)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        standing = by_rows(found.settle([FORM], tuned=True))
    assert (
        held == [1] and set(standing.values()) == {UNKNOWN} and tuned_table.load() == {}
    )
    later = start(gpu)
    assert set(by_rows(later.settle([FORM], tuned=True)).values()) == {ON_OURS}


def test_a_duel_that_fails_stops_no_other(gpu):
    def hold(key, ext):
        if key.rows == 1:
            raise RuntimeError("[METAL] Command buffer execution failed: out of memory")
        return Choice(None, 1.5, DUEL)

    found = start(gpu, hold=hold)
    with pytest.warns(RuntimeWarning, match="96 x 192: .*out of memory"):
        standing = by_rows(found.settle([FORM], tuned=True))
    assert standing.pop(1) == UNKNOWN and set(standing.values()) == {ON_OURS}


def test_a_known_win_waits_until_its_kernels_are_compiled(gpu):
    """A second process, whose compiler is slow."""
    start(gpu).settle([FORM], tuned=True)
    gpu.recorder.configure()
    gpu.compiling = 3.0
    later = start(gpu, seconds=5)
    standing = by_rows(later.settle([FORM], tuned=True))
    assert standing[1] == ON_OURS and standing[512] == UNKNOWN
    compiled = list(gpu.recorder.compiled())
    for rows in (1, 2, 4, 8, 20, 40, 300):
        y = gpu.recorder.quantized_matmul(*operands(rows), tuning=later.number(True))
        if gpu.recorder.node(y).startswith("Nibble"):
            gpu.recorder.evaluate(y)
    assert gpu.recorder.compiled() == compiled


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8, 16, 32])
def test_products_of_one_x_share_a_launch(gpu, rows):
    found = start(gpu)
    found.settle([FORM], tuned=True)
    compiled, kernels = list(gpu.recorder.compiled()), []
    gpu.recorder.set_executor(lambda dispatch: kernels.append(dispatch.kernel))
    x, *weights = operands(rows)
    for y in [
        gpu.recorder.quantized_matmul(x, *weights, tuning=found.number(True))
        for _ in range(2)
    ]:
        gpu.recorder.evaluate(y)
    assert len(kernels) == 1 and kernels[0].startswith("joint_")
    assert gpu.recorder.compiled() == compiled


def test_a_kernel_that_a_process_died_with_is_compiled_alone(gpu):
    (qmv,) = gpu.kernels_of(FORM.shape)
    found = start(gpu)
    with found._judge.being_tried([qmv]):
        stored = json.loads(found._judge.path.read_text())
    stored["trying"] = {qmv: {dead_process(): 1}}
    found._judge.path.write_text(json.dumps(stored))
    standing = by_rows(start(gpu).settle([FORM], tuned=True))
    assert standing[1] == ON_OURS
    assert any(name.endswith(f"_{qmv}") for name in gpu.recorder.compiled())


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
    assert [list(standing.values()).count(w) for w in (ON_OURS, UNKNOWN)] == [3, 11]
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
    assert by_rows(found.settle([FORM], tuned=True))[1] == ON_OURS


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
    assert by_rows(found.settle([FORM], tuned=False))[8] == ON_OURS
    assert is_ours(gpu, found.number(False), 8)
    assert tuned_table.load()[key] == Choice(LEAVE_TO_MLX, 1.1)
    # Another candidate of tune runs, and is compiled before the first token.
    (name,) = set(gpu.recorder.candidates(key.shape, stream=gpu.recorder.stream)[1:2])
    tuned_table.save({key: Choice(name, 1.3)})
    gpu.recorder.configure()
    found = start(gpu)
    assert by_rows(found.settle([FORM], tuned=True))[8] == ON_OURS
    compiled, kernels = list(gpu.recorder.compiled()), []
    gpu.recorder.set_executor(lambda dispatch: kernels.append(dispatch.kernel))
    y = gpu.recorder.quantized_matmul(*operands(8), tuning=found.number(True))
    gpu.recorder.evaluate(y)
    assert kernels == [name] and gpu.recorder.compiled() == compiled


class Model(nn.Module):
    def __init__(self, mode: str = "affine") -> None:
        super().__init__()
        self.layers = [nn.Linear(192, 96, bias=False) for _ in range(3)]
        self.head = nn.Linear(192, 160, bias=False)
        for layer in (*self.layers, self.head):
            layer.weight = mx.random.normal(layer.weight.shape)
        nn.quantize(self, mode=mode)
        self.norm = nn.RMSNorm(192)
        self.set_dtype(mx.float16)
        mx.eval(self.parameters())


def table_of(report) -> int:
    """Return the number of the table that all layers follow."""
    (number,) = {swap.rebound._options.tuning for swap in report.swapped}
    return number


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
    assert f"   4 with 1 row: {ON_OURS}" in said
    assert f"   4 with 2 to 5 rows: {ON_OURS}" in said
    assert f"   4 with 129 rows or more: {SLOWER}" in said
    forms = {(key.N, key.K) for key in tuned_table.load()}
    assert forms == {(96, 192), (160, 192)}
    number = table_of(report)
    assert is_ours(judged, number, 1) and not is_ours(judged, number, 300)
    assert "tune" not in said  # no layer has a choice of it


@pytest.mark.parametrize("mode", FLOAT_MODES)
def test_a_mode_of_floats_has_duels_too(judged, mode):
    report = mlx_nibble.accelerate(Model(mode))
    assert f"   4 with 1 row: {ON_OURS}" in str(report)
    number, found = table_of(report), tuned_table.load()
    assert {(k.mode, k.dtype, k.scale_dtype) for k in found} == {
        (mode, "float16", "uint8")
    }
    form = max(found, key=lambda key: (key.N == 96, key.rows))
    for rows in (1, 8, 300):
        assert is_ours(judged, number, rows, form)


def test_a_product_with_a_global_scale_is_not_timed(judged):
    model = Model("nvfp4")
    model.head.global_scale = mx.array(1.0)
    mlx_nibble.accelerate(model)
    assert {key.N for key in tuned_table.load()} == {96}


def test_processes_that_share_a_model_hold_no_duels(judged):
    model = Model()
    assert measured.of_gpu(Settings(), model) is not None
    model.head.group = mx.distributed.init()  # as a layer of Module.shard() has
    assert measured.of_gpu(Settings(), model) is None
    mlx_nibble.accelerate(model)
    assert judged.timed == [] and tuned_table.load() == {}


def test_accelerate_again_changes_no_layer_and_times_nothing(judged):
    model = Model()
    mlx_nibble.accelerate(model)
    judged.timed = []
    report = mlx_nibble.accelerate(model)
    assert report.unchanged == 4 and judged.timed == []
    assert f"   4 with 1 row: {ON_OURS}" in str(report)


@pytest.mark.parametrize("options", [{"duel": False}, {"batch_invariant": True}])
def test_without_a_duel_being_right_is_enough(judged, options):
    judged.theirs = lambda rows: 1e-5
    report = mlx_nibble.accelerate(Model(), **options)
    assert report.measured == {} and judged.timed == [] and tuned_table.load() == {}
    number = table_of(report)
    assert number == 0
    # Verdicts of an earlier duel are not followed.
    mlx_nibble.accelerate(Model())
    report = mlx_nibble.accelerate(Model(), **options)
    number = table_of(report)
    assert is_ours(judged, number, 1)


def test_without_a_gpu_nothing_is_timed(gpu, monkeypatch):
    nobody = Verdicts(replace(MACHINE, gpu=""), gpu)
    monkeypatch.setattr("mlx_nibble.machine.verdicts._installed", [nobody])
    assert measured.of_gpu(Settings(), Model()) is None
    monkeypatch.setattr("mlx_nibble.machine.verdicts._installed", [])
    assert measured.of_gpu(Settings(), Model()) is None


def test_a_cpu_has_no_duel(tables):
    report = mlx_nibble.accelerate(Model())
    assert report.measured == {} and not tables.exists()
    assert "row" not in str(report)

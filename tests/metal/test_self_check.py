"""Kernels that do not compile or are wrong are found and switched off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble.machine import trial as trials
from mlx_nibble.machine.trial import Trial, Verdict
from mlx_nibble.machine.verdicts import CONDEMNED, Machine, Verdicts
from tests.metal.conftest import KERNELS, VIEW
from tests.metal.replay import execute
from tests.simt import plans
from tests.support.arrays import to_mlx

MACHINE = Machine("applegpu_g14s", "macOS 15.1", "0.32.4", "0.1.0")
QMV = KERNELS[0]


def output(dispatch):
    """Return the bytes of the last output array, and the size of one element."""
    *_, out = (a for a in dispatch.arrays if a.output)
    memory = np.ctypeslib.as_array(
        (np.ctypeslib.ctypes.c_uint8 * out.nbytes).from_address(out.address)
    )
    return memory, out.itemsize


def spoil(dispatch):
    """Compute as a GPU that gets one element wrong."""
    execute(dispatch)
    memory, itemsize = output(dispatch)
    memory[:itemsize] ^= 0xFF


def idle(dispatch):
    """Clear the output, as a GPU that computes nothing in fresh memory."""
    output(dispatch)[0][:] = 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_good_kernel_passes(ext, kernel):
    assert trials.check(kernel, ext) == Verdict(kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_wrong_element_is_found(ext, recorder, kernel):
    recorder.set_executor(spoil)
    verdict = trials.check(kernel, ext)
    assert verdict is not None
    assert not verdict.ok
    assert verdict.failure.startswith("wrong results: 1 of ")


def test_nothing_computed_is_found(ext, recorder):
    recorder.set_executor(idle)
    verdict = trials.check(QMV, ext)
    assert verdict is not None
    assert "wrong results" in verdict.failure


def test_a_refused_kernel_is_found(ext, recorder):
    recorder.configure(refused={QMV})
    assert trials.check(QMV, ext) == Verdict(
        QMV, "[metal::Device] Unable to build metal library from source"
    )


def test_a_kernel_for_too_few_threads_is_found(ext, recorder):
    recorder.configure(max_threads=32)
    verdict = trials.check(QMV, ext)
    assert verdict is not None
    assert "at most 32" in verdict.failure


def test_every_kernel_has_a_trial(ext, recorder):
    for kernel in recorder.kernels():
        trial = Trial(**recorder.trial(kernel))
        assert trial.K % trial.group_size == 0
        assert (trial.kind == "dequantize") == kernel.startswith("dequantize")
        assert trial.mode == plans.mode_of(kernel)


def layer(recorder):
    x = to_mlx(np.ones((1, 320)), "float16")
    w = mx.array(np.zeros((8, 40), np.uint32))
    scales = to_mlx(np.ones((8, 5)), "float16")
    mx.eval(x, w, scales)
    return recorder.quantized_matmul(x, w, scales, scales)


def test_mlx_s_operation_takes_over_with_one_warning(ext, recorder):
    recorder.configure(refused={QMV})
    recorder.set_judge(Verdicts(MACHINE, ext))
    with pytest.warns(RuntimeWarning, match=f"{QMV} .*: .*Unable to build") as caught:
        assert recorder.node(layer(recorder)) == "QuantizedMatmul"
        assert recorder.node(layer(recorder)) == "QuantizedMatmul"
    assert len(caught) == 1
    assert ext.tried == [VIEW, QMV]


def test_a_trusted_kernel_is_tried_once(ext, recorder):
    recorder.set_judge(Verdicts(MACHINE, ext))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert recorder.node(layer(recorder)) == "NibbleQuantizedMatmul"
    assert ext.tried == [VIEW, QMV]


def test_dequantize_falls_back_too(ext, recorder):
    kernel = "dequantize_f16_f16_b4_g64"
    recorder.configure(refused={kernel})
    recorder.set_judge(Verdicts(MACHINE, ext))
    w = mx.array(np.zeros((8, 40), np.uint32))
    scales = to_mlx(np.ones((8, 5)), "float16")
    mx.eval(w, scales)
    with pytest.warns(RuntimeWarning, match=kernel):
        w_hat = recorder.dequantize(w, scales, scales)
    assert recorder.node(w_hat) != "NibbleDequantize"


def test_verdicts_outlive_the_process(ext, recorder):
    recorder.configure(refused={KERNELS[1]})
    first = Verdicts(MACHINE, ext)
    assert first(QMV)
    with pytest.warns(RuntimeWarning):
        assert not first(KERNELS[1])
    ext.tried.clear()
    second = Verdicts(MACHINE, ext)
    assert second(QMV)
    with pytest.warns(RuntimeWarning, match="Unable to build"):
        assert not second(KERNELS[1])
    assert ext.tried == []


@pytest.mark.parametrize("field", ["gpu", "system", "mlx", "mlx_nibble"])
def test_another_machine_tries_for_itself(ext, field):
    assert Verdicts(MACHINE, ext)(QMV)
    ext.tried.clear()
    other = Machine(**{**vars(MACHINE), field: "another"})
    assert Verdicts(other, ext)(QMV)
    assert ext.tried == [QMV]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"failures": 3}', "\0", "null"])
def test_a_damaged_cache_is_made_anew(ext, text):
    verdicts = Verdicts(MACHINE, ext)
    verdicts.path.parent.mkdir(parents=True)
    verdicts.path.write_text(text)
    assert verdicts(QMV)
    stored = json.loads(verdicts.path.read_text())
    assert (stored["failures"], stored["trying"]) == ({QMV: None}, {})
    assert [p.name for p in verdicts.path.parent.iterdir()] == [verdicts.path.name]


def test_no_cache_folder_is_no_obstacle(ext, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(file))
    verdicts = Verdicts(MACHINE, ext)
    assert verdicts(QMV)
    assert verdicts(QMV)
    assert ext.tried == [QMV]


def test_two_processes_keep_each_other_s_verdicts(ext):
    first, second = Verdicts(MACHINE, ext), Verdicts(MACHINE, ext)
    assert first(QMV)
    second.try_now(KERNELS[1])
    first.try_now(KERNELS[2])
    stored = json.loads(first.path.read_text())
    assert set(stored["failures"]) == set(KERNELS[:3])


def dead_process() -> int:
    """Return the identifier of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.parametrize("process", [dead_process, os.getpid, lambda: -1])
def test_a_trial_that_ended_its_process_is_not_run_again(ext, monkeypatch, process):
    """A crash, a hang that the user killed, or another process of the same number."""
    verdicts = Verdicts(MACHINE, ext)
    marks = []

    def crash(*_):
        marks.append(verdicts.path.read_text())

    monkeypatch.setattr(trials, "check", crash)
    verdicts(QMV)
    monkeypatch.undo()
    stored = json.loads(marks[0])
    assert stored["trying"] == {QMV: {str(os.getpid()): CONDEMNED}}
    stored["trying"][QMV] = {process(): CONDEMNED}
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(verdicts.path.parent.parent))
    verdicts.path.write_text(json.dumps(stored))
    later = Verdicts(MACHINE, ext)
    with pytest.warns(RuntimeWarning, match="last trial did not end"):
        assert not later(QMV)
    assert later(KERNELS[1])
    assert ext.tried == [KERNELS[1]]
    # `nibble doctor` tries again.
    monkeypatch.setattr(trials, "gpu_is_sound", lambda: True)
    assert later.try_now(QMV).ok
    assert Verdicts(MACHINE, ext)(QMV)


def test_a_closed_terminal_switches_no_kernel_off(ext):
    """It ends the process while kernels compile together, or are timed."""
    verdicts = Verdicts(MACHINE, ext)
    marks = []
    with verdicts.being_tried(KERNELS[:2]):
        marks.append(json.loads(verdicts.path.read_text()))

    def died(*processes: int) -> Verdicts:
        trying = {QMV: dict.fromkeys(processes, 1)}
        verdicts.path.write_text(json.dumps(marks[0] | {"trying": trying}))
        return Verdicts(MACHINE, ext)

    assert set(marks[0]["trying"]) == set(KERNELS[:2])
    first, second = dead_process(), dead_process()
    once = died(first)
    assert once.doubted() == {QMV} and once(QMV)
    # A trial that ends well acquits it.
    assert Verdicts(MACHINE, ext).doubted() == set()
    twice = died(first, second)
    assert twice.doubted() == set()
    with pytest.warns(RuntimeWarning, match="last trial did not end"):
        assert not twice(QMV)


def test_views_are_tried_with_a_product(ext, recorder):
    assert trials.check(VIEW, ext) == Verdict(VIEW)

    def straight(dispatch):
        """Copy a view as if it had no strides."""
        if dispatch.kernel != VIEW:
            execute(dispatch)
            return
        source, to = dispatch.arrays
        bytes_of = np.ctypeslib.ctypes.c_uint8 * to.nbytes
        bytes_of.from_address(to.address)[:] = bytes_of.from_address(source.address)

    recorder.set_executor(straight)
    verdict = trials.check(VIEW, ext)
    assert verdict is not None and not verdict.ok
    recorder.set_judge(Verdicts(MACHINE, ext))
    with pytest.warns(RuntimeWarning, match=VIEW):
        assert recorder.node(layer(recorder)) == "QuantizedMatmul"


def test_the_trial_of_another_process_is_no_failure(ext):
    verdicts = Verdicts(MACHINE, ext)
    verdicts.path.parent.mkdir(parents=True)
    other = {"failures": {}, "trying": {QMV: {os.getppid(): CONDEMNED}}}
    verdicts.path.write_text(json.dumps(other))
    assert verdicts(QMV)
    assert ext.tried == [QMV]


def test_ctrl_c_during_a_trial_leaves_no_mark(ext, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ext, "run_trial", interrupted)
    verdicts = Verdicts(MACHINE, ext)
    with pytest.raises(KeyboardInterrupt):
        verdicts(QMV)
    stored = json.loads(verdicts.path.read_text())
    assert (stored["failures"], stored["trying"]) == ({}, {})


@pytest.mark.parametrize(
    "error",
    [
        "[METAL] Command buffer execution failed: Caused GPU Timeout Error",
        "[METAL] Command buffer execution failed: Insufficient Memory",
        "[metal::Device] Unable to build metal library from source XPC_ERROR",
    ],
)
def test_a_failure_with_another_reason_is_not_kept(ext, monkeypatch, error):
    run = ext.run_trial

    def fail(*_):
        raise RuntimeError(error)

    monkeypatch.setattr(ext, "run_trial", fail)
    verdicts = Verdicts(MACHINE, ext)
    with pytest.warns(RuntimeWarning, match="MLX's operation replaces it"):
        assert not verdicts(QMV)
    monkeypatch.setattr(ext, "run_trial", run)
    assert Verdicts(MACHINE, ext)(QMV)


def test_a_failure_on_a_gpu_that_fails_at_all_is_not_kept(ext, recorder, monkeypatch):
    recorder.configure(refused={QMV})
    monkeypatch.setattr(trials, "gpu_is_sound", lambda: False)
    with pytest.warns(RuntimeWarning):
        assert not Verdicts(MACHINE, ext)(QMV)
    recorder.configure()
    assert Verdicts(MACHINE, ext)(QMV)


def test_without_a_gpu_no_kernel_is_used(ext):
    assert not Verdicts(Machine("", "macOS 15.1", "0.32.4", "0.1.0"), ext)(QMV)
    assert ext.tried == []


def test_a_judge_leaves_the_interpreter_in_peace():
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from mlx_nibble import _recorder\n"
        "from mlx_nibble.machine import verdicts\n"
        "verdicts.mx.metal.is_available = lambda: True\n"
        "verdicts.install(_recorder)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failure_names_no_home_folder(ext, monkeypatch):
    from pathlib import Path

    def fail(*_):
        raise RuntimeError(f"cannot read\n {Path.home()}/Library/x")

    monkeypatch.setattr(ext, "run_trial", fail)
    assert trials.check(QMV, ext) == Verdict(QMV, "cannot read ~/Library/x")

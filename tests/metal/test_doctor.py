"""`nibble doctor`, on the recorder's GPU and on this machine."""

from __future__ import annotations

import getpass
import json
import platform
import re

import pytest

import mlx_nibble
from mlx_nibble import _native, ops
from mlx_nibble.cli import main
from mlx_nibble.formats import MODES
from mlx_nibble.machine import trial
from mlx_nibble.machine.diagnosis import common, diagnose
from mlx_nibble.machine.trial import Verdict
from mlx_nibble.machine.verdicts import Machine, Verdicts
from tests.metal.conftest import KERNELS, VIEW

MACHINE = Machine("applegpu_g14s", "macOS 15.1", "0.32.4", "0.1.0")
FORMATS = sum(
    ops.supports(name, bits, group_size)
    for name, mode in MODES.items()
    if mode.mlx_name == name  # symmetric matrices are MLX's affine ones
    for bits in mode.bits
    for group_size in mode.group_sizes
)


def test_what_it_finds_is_what_is_used(ext, recorder):
    recorder.configure(refused={KERNELS[1]})
    diagnosis = diagnose(ext, MACHINE, gpu=True, everything=True)
    assert not diagnosis.ok
    assert [v.kernel for v in diagnosis.gpu if not v.ok] == [KERNELS[1]]
    assert ext.tried == [VIEW, *KERNELS]

    # The user updates something and asks again.
    recorder.configure()
    verdicts = Verdicts(MACHINE, ext)
    with pytest.warns(RuntimeWarning):
        assert not verdicts(KERNELS[1])
    assert diagnose(ext, MACHINE, gpu=True, everything=True).ok
    assert Verdicts(MACHINE, ext)(KERNELS[1])


def test_the_table_counts_verdicts(ext, monkeypatch):
    monkeypatch.setattr(
        trial,
        "check",
        lambda kernel, _: Verdict(kernel, "broken" if "qmv_f16" in kernel else None),
    )
    header, *rows = diagnose(ext, MACHINE, gpu=True, everything=True).table()
    assert header == ["", "float32", "float16", "bfloat16"]
    assert rows[0] == [VIEW, "1 ok", "1 ok", "1 ok"]
    assert rows[1] == ["qmv", "0 ok", "0 ok, 1 OFF", "0 ok"]
    assert rows[5] == ["qmm", "1 ok", "0 ok", "0 ok"]
    assert ["cpu", *[f"{FORMATS} ok"] * 3] in rows
    assert rows[-1] == ["cpu_gather_swiglu", *["1 ok"] * 3]


def test_common_checkpoints_need_tens_of_kernels(recorder):
    some = [k for k in recorder.kernels() if common(k)]
    assert 20 <= len(some) < 110
    assert not any("gradient" in kernel for kernel in some)
    # Those that one row, several rows, prompts and experts lead to.
    for family in ("qmv", "qmv_multi", "qmm_skinny", "qmm", "qmm_splitk", "swiglu"):
        assert any(k.startswith(f"{family}_bf16_bf16_b4_g64") for k in some), family
    for family in ("gather_qmv", "gather_qmm", "gather_swiglu", "joint_qmv"):
        assert any(k.startswith(f"{family}_f16_f16_b4_g64") for k in some), family


@pytest.mark.parametrize("everything", [False, True])
def test_kernels_that_the_planner_never_uses_are_not_tried(ext, recorder, everything):
    ext.kernels = recorder.kernels
    ext.trial = lambda kernel: None
    totals = []
    found = diagnose(
        ext,
        MACHINE,
        gpu=True,
        everything=everything,
        progress=lambda what, done, total: totals.append(total),
    )
    assert (found.gpu, set(totals)) == ((), {1})  # views are


def test_many_kernels_are_compiled_in_one_library(ext, recorder):
    assert diagnose(ext, MACHINE, gpu=True, everything=True).ok
    libraries = recorder.compiled()
    # Kernels that a process compiled together are compiled so again. A trial of views
    # runs one that another test's duel may have compiled with others.
    shared = [n for n in libraries if "+" in n and "skinny_f16_e8m0" not in n]
    assert len(shared) == -(-(1 + len(KERNELS)) // 16)
    assert sum(name.count("+") + 1 for name in shared) == len(KERNELS)
    # The second launch of a split K has the types of the first. The trials of views are
    # those of products.
    alone = {name for name in libraries if "+" not in name}
    known = re.compile("qmm_splitk|contiguous|skinny_(f32|f16_e8m0)")
    assert [name for name in alone if not known.search(name)] == []
    assert not any(name.endswith(kernel) for name in alone for kernel in KERNELS)


def test_a_kernel_that_metal_refuses_costs_its_library_only(ext, recorder):
    recorder.configure(refused={KERNELS[1]})
    diagnosis = diagnose(ext, MACHINE, gpu=True, everything=True)
    assert [v.kernel for v in diagnosis.gpu if not v.ok] == [KERNELS[1]]


def test_what_is_known_survives_an_interruption(ext, monkeypatch):
    check = trial.check

    def stop(kernel, ext):
        if kernel == KERNELS[3]:
            raise KeyboardInterrupt
        return check(kernel, ext)

    monkeypatch.setattr(trial, "check", stop)
    with pytest.raises(KeyboardInterrupt):
        diagnose(ext, MACHINE, gpu=True, everything=True)
    stored = json.loads(Verdicts(MACHINE, ext).path.read_text())
    assert set(stored["failures"]) == {VIEW, *KERNELS[:3]}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_this_machine_is_well(cache, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"cpu +{FORMATS} ok +{FORMATS} ok +{FORMATS} ok", out)
    assert "OFF" not in out


def test_json(cache, capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["cpu_isa"] == _native.ext.cpu_isa()
    # Every format, and three more uses of one format.
    assert len(found["cpu"]) == 3 * (FORMATS + 3)
    assert found["machine"]["mlx_nibble"] == mlx_nibble.__version__


def test_the_report_is_one_file_without_personal_data(cache, capsys):
    assert main(["doctor", "--report"]) == 0
    (report,) = (p for p in cache.iterdir() if p.is_file())
    assert report.name == "nibble-report.json"
    text = report.read_text()
    assert json.loads(text)["ok"]
    for secret in {str(cache), platform.node(), getpass.getuser()} - {""}:
        assert f'"{secret}' not in text
    assert set(json.loads(text)) == {
        "machine",
        "hardware",
        "python",
        "cpu_isa",
        "gpu",
        "cpu",
        "ok",
    }


def test_a_wrong_kernel_is_the_exit_status(cache, capsys, monkeypatch):
    wrong = Verdict("cpu_f32_f32_b4_g64", "wrong results")
    monkeypatch.setattr("mlx_nibble.machine.diagnosis._cpu_verdicts", lambda: [wrong])
    with pytest.raises(SystemExit, match="1"):
        main(["doctor"])
    assert "OFF  cpu_f32_f32_b4_g64: wrong results" in capsys.readouterr().out


def test_an_unwritable_report_is_one_clear_error(cache, capsys):
    assert main(["doctor", "--report", "no/such/folder/r.json"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nibble: [doctor] a file that can be written was")
    assert "'no/such/folder/r.json'" in error


def test_an_inactive_package_says_why(cache, capsys, monkeypatch):
    monkeypatch.setattr(_native, "ext", None)
    monkeypatch.setattr(_native, "reason", "because")
    assert main(["doctor"]) == 1
    said, error = capsys.readouterr().err.splitlines()
    assert said.endswith("is inactive, every operation is MLX's own: because")
    assert error == "nibble: [doctor] an active mlx-nibble was required."

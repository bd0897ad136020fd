"""The model of time: its counts are true, and the planner's defaults follow it."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from bench import kernel_counts, predict, published, time_model
from tests.simt.toolchain import ROOT

# Tiles of csrc/core/plan/cost.h, and the kernel that each is for.
COSTS = {
    "kSkinnyCost": "qmm_skinny_f16_f16_b4_g64_bm32_bn32_wk8",
    "kMlxTileCost": "mlx affine_qmm_t_b4",
    "64 * 64": "qmm_f16_f16_b4_g64_bm64_bn64_bk32_wm2_wn2",
    "64 * 32": "qmm_f16_f16_b4_g64_bm64_bn32_bk32_wm2_wn2",
    ": TileCost": "qmm_f16_f16_b4_g64_bm32_bn32_bk32_wm2_wn2",
}
BLOCKS = {"64 * 64": 4, "64 * 32": 2}


@pytest.mark.parametrize("bits", [4, 8])
def test_no_class_of_rows_is_ours_where_mlx_is_predicted_to_be_faster(bits: int):
    lost = [p for p in predict.every(bits) if p.chosen and p.ratio < 0.95]
    assert not lost


def test_up_to_16_rows_are_ours_on_every_chip():
    few = ("1", "2–5", "6–8", "9–16")
    predictions = [p for p in predict.every() if p.case in few]
    assert predictions and all(p.chosen for p in predictions)


def arithmetic(counted: dict, part: str) -> float:
    """Return the cycles of a core beside 8x8 products, of `fixed` or `per_k`."""
    counts = counted[part]
    cycles = time_model.CYCLES
    issue = sum(cycles[n] * counts[n] for n in cycles if n != "products")
    return max(issue, time_model.SLOW * counts["slow"]) / time_model.SCHEDULERS


@pytest.mark.parametrize("where", COSTS)
def test_the_planner_has_the_costs_of_the_model(where: str):
    text = (ROOT / "csrc/core/plan/cost.h").read_text()
    found = re.search(re.escape(where) + r"[^{;]*\{([\d., ]+)\}", text)
    assert found
    fixed, per_k, simdgroups, resident = map(float, found[1].split(","))
    counted = time_model.counts()[COSTS[where]]
    blocks = BLOCKS.get(where, 1)
    assert simdgroups == counted["simdgroups"]
    memory = counted["threadgroup_bytes"]
    assert resident == time_model.CORE_MEMORY // memory * simdgroups
    assert per_k == pytest.approx(arithmetic(counted, "per_k") / blocks, abs=0.4)
    assert fixed == pytest.approx(arithmetic(counted, "fixed") / blocks, abs=130)


def short_and_long(name: str) -> list[kernel_counts.Run]:
    def first(runs: Iterator[kernel_counts.Run]) -> kernel_counts.Run:
        return next(run for run in runs if run.name == name)

    return [first(kernel_counts.ours(4, K)) for K in kernel_counts.LENGTHS]


def test_the_committed_counts_are_those_of_a_kernel():
    name = "qmv_f16_f16_b4_g64"
    assert kernel_counts.linear(short_and_long(name)) == time_model.counts()[name]


def test_kernels_that_were_measured_are_predicted_within_a_quarter():
    errors = [row.error for row in published.every() if not row.whole]
    assert len(errors) >= 18
    assert max(map(abs, errors)) < 0.25
    assert statistics.median(map(abs, errors)) < 0.12


def test_a_core_is_faster_with_more_simdgroups():
    shares = [time_model.occupancy(s) for s in range(1, 40)]
    assert all(a <= b for a, b in pairwise(shares)) and shares[-1] == 1


def test_mlx_splits_k_into_whole_groups():
    for M, N, K in [(17, 1024, 4096), (32, 2048, 8192), (64, 4096, 14336)]:
        parts = time_model.split_parts(M, N, K)
        assert K % (parts * 64) == 0 and parts * -(-N // 32) * -(-M // 32) <= 512


def test_the_report_is_for_machines_too(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    path = tmp_path / "predictions.json"
    monkeypatch.setattr("sys.argv", ["predict", "--json", str(path)])
    predict.main()
    out = capsys.readouterr().out
    assert out.count("| predicted |") == 2
    rows = json.loads(path.read_text())
    assert {row["chip"] for row in rows} == {chip.name for chip in time_model.CHIPS}
    assert all(row["ours"] > 0 and row["mlx"] > 0 for row in rows)

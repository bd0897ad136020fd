"""The model of time: its counts are true, and the planner's defaults follow it."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from bench import kernel_counts, predict, published, time_model
from tests.simt import numbers, plans

# Tiles of the planner: family, shape, and blocks of 32 x 32 in a threadgroup.
TILES = (
    ("qmm_skinny", "_bm32_bn32_wk8", 1),
    ("qmm", "_bm64_bn64_bk32_wm2_wn2", 4),
    ("qmm", "_bm64_bn32_bk32_wm2_wn2", 2),
    ("qmm", "_bm32_bn32_bk32_wm2_wn2", 1),
    ("gather_qmm", "_bm16_bn32_bk32_wm1_wn2", 0.5),
    ("gather_qmm", "_bm32_bn32_bk32_wm2_wn2", 1),
    ("mlx", "qmm_t", 1),
    ("mlx", "gather_qmm_rhs", 0.5),
    ("group_gradient", "", 4),
)
FORMATS = kernel_counts.FORMATS


@pytest.mark.parametrize(("mode", "bits"), FORMATS)
def test_no_class_of_rows_is_ours_where_mlx_is_predicted_to_be_faster(
    mode: str, bits: int
):
    classes: dict[tuple, list[float]] = {}
    for p in predict.every(bits, mode):
        # On M3 and M4, MLX's vectors win 9 rows of nvfp4, but not their class.
        rows = None if mode == "nvfp4" and p.case == "9–16" else p.M
        if p.chosen:
            classes.setdefault((p.chip, p.case, p.N, p.K, rows), []).append(p.ratio)
    assert not {k: r for k, r in classes.items() if statistics.median(r) < 0.95}


def test_up_to_16_rows_are_ours_on_every_chip():
    few = ("1", "2–5", "6–8", "9–16")
    predictions = [p for p in predict.every() if p.case in few]
    assert predictions and all(p.chosen for p in predictions)


@pytest.mark.parametrize(("mode", "bits"), FORMATS)
def test_nothing_that_ours_is_predicted_to_win_is_left_to_mlx(mode: str, bits: int):
    found = predict.every(bits, mode)
    assert not [p for p in found if not p.chosen and p.ratio > 1.02]


def arithmetic(counted: dict, part: str) -> float:
    """Return the cycles of a core beside 8x8 products, of `fixed` or `per_k`."""
    counts = counted[part]
    cycles = time_model.CYCLES
    issue = sum(cycles[n] * counts[n] for n in cycles if n != "products")
    return max(issue, time_model.SLOW * counts["slow"]) / time_model.SCHEDULERS


def counted_kernel(tile: tuple[str, str, float], mode: str, bits: int) -> str:
    family, shape, _ = tile
    if family == "mlx":
        return kernel_counts.name_of(shape, mode, bits)
    form = kernel_counts.form_of(mode, bits)
    label = "" if mode == "affine" else f"_{mode}"
    types = f"f16_{numbers.SHORT[form['scale_dtype']]}"
    return f"{family}_{types}_b{bits}_g{form['group_size']}{label}{shape}"


@pytest.mark.parametrize(("mode", "bits"), FORMATS)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile[0] + tile[1])
def test_the_planner_has_the_costs_of_the_model(
    tile: tuple[str, str, float], mode: str, bits: int
):
    costs = dict(zip(TILES, plans.tile_costs(mode, bits), strict=True))
    fixed, per_k, simdgroups, resident = costs[tile]
    blocks = tile[2]
    if (mode, bits) == ("affine", 8) and tile[0] != "gather_qmm":
        bits = 4  # large tiles decode little
    if tile[0] == "group_gradient":
        mode, bits = "affine", 4  # the modes that have gradients decode alike
    counted = time_model.counted(counted_kernel(tile, mode, bits))
    assert simdgroups == counted["simdgroups"]
    memory = counted["threadgroup_bytes"]
    assert resident == time_model.CORE_MEMORY // memory * simdgroups
    assert per_k == pytest.approx(arithmetic(counted, "per_k") / blocks, rel=0.1)
    assert fixed == pytest.approx(arithmetic(counted, "fixed") / blocks, rel=0.1)


def test_a_kernel_that_is_not_counted_has_no_time():
    unknown = time_model.Work("qmm_of_tomorrow", 1, 64, 0.0)
    with pytest.raises(ValueError, match="counted kernel .* got qmm_of_tomorrow"):
        time_model.seconds([unknown], time_model.CHIPS[0])


# The second is one that only experts have.
@pytest.mark.parametrize(
    "name", ["qmv_f16_f16_b4_g64", "gather_qmm_f16_f16_b4_g64_bm16_bn32_bk32_wm1_wn2"]
)
def test_the_committed_counts_are_those_of_a_kernel(name: str):
    assert kernel_counts.count(name) == {name: time_model.counts()[name]}


def test_kernels_that_were_measured_are_predicted_within_a_quarter():
    found = [row for row in published.every() if not row.whole and not row.fitted]
    errors = [row.error for row in found]
    assert len(errors) >= 13
    assert max(map(abs, errors)) < 0.25
    assert statistics.median(map(abs, errors)) < 0.12


def test_models_that_were_measured_are_predicted_within_26_percent():
    assert all(abs(row.error) < 0.26 for row in published.every() if row.whole)


def test_a_core_is_faster_with_more_simdgroups():
    shares = [plans.occupancy(s) for s in range(1, 40)]
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

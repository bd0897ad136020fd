"""The counters agree with counts worked out by hand."""

from __future__ import annotations

import json

import pytest

from mlx_nibble.formats import SUPPORTED_BITS
from tests.simt import cases, profile
from tests.simt.executor import Options, run
from tests.simt.plans import Problem, candidates

P = Problem(M=32, N=64, K=128)
TILES = (P.M // 32) * (P.N // 32)


def test_counters_of_mlx_tiles_are_those_of_the_text() -> None:
    rows = {row.plan: row for row in profile.theirs(P)}
    tiles = rows["mlx affine_qmm_t"]
    assert tiles.threadgroups == TILES
    assert tiles.threads == 128
    # Four by four products of 8 in each of K's fragments.
    assert tiles.matrix_products == TILES * 16 * (P.K // 8)
    # Two in each step, one before the result is stored.
    assert tiles.barriers_per_step == pytest.approx(2 + 32 / P.K)
    # Both tiles have two bytes an element. Each is written once, and two of the four
    # simdgroups read it.
    assert tiles.threadgroup_bytes == TILES * (32 + 32) * P.K * 2 * (1 + 2)
    vectors = rows["mlx affine_qmv"]
    # x, w, scales and biases once for each of eight rows of y.
    assert vectors.read >= P.M * P.N * P.K // 2


@pytest.mark.parametrize("bits", SUPPORTED_BITS)
@pytest.mark.parametrize("K", [512, 1024, 1536, 2560])
def test_no_two_simdgroups_ask_for_a_line_of_a_row(bits: int, K: int) -> None:
    p = Problem(M=16, N=32, K=K, bits=bits)
    ((launch,),) = candidates(p)
    assert launch.kernel.startswith("qmm_skinny_")
    case = cases.matmul(p, launch)
    outputs = {"out": (case.shape, case.operands["x"].dtype)}
    memory = run(launch, case.operands, outputs, Options(instrumented=True)).memory
    (weights,) = (region for region in memory if region["name"] == "w")
    assert weights["lines_64"] * 64 == weights["bytes"]
    assert weights["read"] == weights["bytes"]


def test_the_report_is_for_machines_too(capsys: pytest.CaptureFixture[str]) -> None:
    profile.main(["1", "64", "64", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["plan"].split()[0] for row in rows} >= {"mlx"}
    for row in rows:
        assert row["read_over_ideal"] >= 1
        assert row["lines_64_over_ideal"] >= 1
        assert row["bank_rounds_over_ideal"] >= 1

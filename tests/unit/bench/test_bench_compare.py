"""Comparing two runs: a planted change is found, and nothing else."""

from __future__ import annotations

import copy
import json

import pytest

from mlx_nibble.bench import statistics
from mlx_nibble.bench.compare import compare
from mlx_nibble.cli import main

CASES = [
    {"rows": m, "N": 64, "K": 64, "bits": 4, "group_size": 64, "dtype": "float32"}
    for m in (1, 8)
]


def capsule(scale: float = 1.0, passes: int = 12, **settings):
    samples = [[1e-3 * (1 + 0.01 * (i % 3))] * 3 for i in range(passes)]
    results = [
        {
            "case": case,
            "candidates": {
                "nibble": {
                    "passes": [
                        [s * (scale if case["rows"] == 8 else 1) for s in p]
                        for p in samples
                    ]
                },
                "mlx": {"passes": samples},
            },
        }
        for case in CASES
    ]
    return {
        "schema": "mlx-nibble/bench/1",
        "kind": "kernels",
        "command": [],
        "complete": True,
        "machine": {"cpu": "A", "threads": 2, "device": "cpu"},
        "versions": {"mlx": "1"},
        "settings": {"hot": False, **settings},
        "peaks": None,
        "results": results,
    }


@pytest.mark.parametrize(
    ("scale", "verdict"),
    [(1.0, "same"), (1.2, "slower"), (1 / 1.2, "faster"), (1.1, "same")],
)
def test_verdicts(scale, verdict):
    outcome = compare(capsule(), capsule(scale))
    assert [c.verdict for c in outcome.ours] == ["same", verdict]
    assert outcome.regressed == (verdict == "slower")
    assert {c.verdict for c in outcome.others} == {"same"}
    found = outcome.ours[1].change
    assert found and found.factor.value == pytest.approx(scale, rel=1e-3)


def test_a_smaller_change_counts_if_asked_for():
    assert compare(capsule(), capsule(1.1), least=0.05).regressed
    assert not compare(capsule(), capsule(1.03), least=0.05).regressed


def test_too_few_passes_are_no_verdict():
    few = statistics.LEAST_PASSES - 1
    outcome = compare(capsule(passes=few), capsule(2, passes=few))
    assert {c.verdict for c in outcome.ours} == {"unknown"}
    assert not outcome.regressed


def test_more_comparisons_have_wider_intervals():
    noisy = [[1 + 0.02 * (i * 7 % 11)] for i in range(20)]
    one, many = (statistics.change(noisy, noisy, n) for n in (1, 50))
    assert one and many
    assert many.factor.low < one.factor.low < 1 < one.factor.high < many.factor.high


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ValueError, match="the setting 'hot' must be the same"):
        compare(capsule(), capsule(hot=True))
    with pytest.raises(ValueError, match="two runs of one kind"):
        compare(capsule(), {**capsule(), "kind": "model"})
    with pytest.raises(ValueError, match="no case in common"):
        compare(capsule(), {**capsule(), "results": []})
    other = copy.deepcopy(capsule())
    other["machine"]["cpu"] = "B"
    other["complete"] = False
    other["results"].pop()
    outcome = compare(capsule(), other)
    assert outcome.warnings == (
        "not the same machine: cpu is A and B",
        "the second run was interrupted",
    )
    assert outcome.unmatched == 1


def test_the_command_exits_with_1_on_a_regression(tmp_path, capsys):
    paths = [tmp_path / f"{name}.json" for name in "ab"]
    for path, scale in zip(paths, (1, 1.2), strict=True):
        path.write_text(json.dumps(capsule(scale)))
    names = [str(path) for path in paths]
    with pytest.raises(SystemExit, match="1"):
        main(["bench", "compare", *names])
    out = capsys.readouterr().out
    assert "8 × 64 × 64" in out and "+20.0 %" in out and "slower" in out
    assert "Of 2 cases: 1 slower, 1 same." in out
    assert main(["bench", "compare", *reversed(names)]) == 0
    with pytest.raises(SystemExit, match="1"):
        main(["bench", "compare", "--json", *names])
    capsys.readouterr()
    assert main(["bench", "compare", "--all", names[0], names[0]]) == 0
    out = capsys.readouterr().out
    assert "1 × 64 × 64" in out and "Of 2 cases: 2 same." in out

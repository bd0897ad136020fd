"""Builds in turns: recorded tries show a planted 10 %, and no change as none."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import jsonschema
import pytest

from mlx_nibble.bench import in_turns
from mlx_nibble.bench.compare import compare
from mlx_nibble.bench.products import Case
from mlx_nibble.cli import main
from tests.support.paths import ROOT

# Recorded by bench/planted_slowdown.py. For each try and product, "a" has microseconds
# for each pass. "b" is the same build again; "slow" does a tenth more products. Both
# have ratios to their neighbours: the median of each pass.
TRIES = json.loads((Path(__file__).parent / "recorded" / "in_turns.json").read_text())
SCHEMA = json.loads((ROOT / "docs" / "capsule.schema.json").read_text())
SMALL = Case(2, 64, 64, 4, 32, "float32")


def run(recorded, build: str):
    """Return a run of a try; the median of each pass stands for its samples."""
    results = []
    for number, product in enumerate(recorded):
        scale = [1.0] * len(product["a"]) if build == "a" else product[build]
        passes = [[s * f] for s, f in zip(product["a"], scale, strict=True)]
        case = {"product": number}
        results.append({"case": case, "candidates": {"nibble": {"passes": passes}}})
    return {
        "kind": "kernels",
        "complete": True,
        "machine": {},
        "versions": {},
        "settings": {"hot": False, "in_turns": "0"},
        "results": results,
    }


def test_there_are_twenty_tries():
    assert len(TRIES) == 20


@pytest.mark.parametrize("number", range(20))
def test_a_planted_tenth_is_found_and_no_change_is_not(number):
    a, b, slow = (run(TRIES[number], build) for build in ("a", "b", "slow"))
    same = compare(a, b)
    assert {c.verdict for c in same.ours} == {"same"}
    found = compare(a, slow)
    assert found.regressed
    assert {c.verdict for c in found.ours} == {"slower"}
    assert {c.verdict for c in compare(slow, a).ours} == {"faster"}
    assert {c.verdict for c in compare(b, a).ours} == {"same"}


def test_two_builds_are_measured_in_turns(tmp_path, capsys):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    environment = Path(sys.executable)
    arguments = ["--shape", "2,64,64", "--group-size", "32", "--hot", "--passes", "2"]
    command = ["bench", "compare", str(environment), str(environment), *arguments]
    assert main([*command, "--output", *map(str, paths)]) == 0
    assert "Of 1 cases: 1 unknown." in capsys.readouterr().out
    made = [json.loads(path.read_text()) for path in paths]
    for one in made:
        jsonschema.validate(one, SCHEMA)
        (result,) = one["results"]
        assert result["case"] == asdict(SMALL)
        assert len(result["candidates"]["nibble"]["passes"]) == 2
    counts = [
        [len(taken) for taken in one["results"][0]["candidates"]["nibble"]["passes"]]
        for one in made
    ]
    assert counts[0] == counts[1] and min(counts[0]) > 0
    # A stored run compares like a measured one.
    assert main(["bench", "compare", *map(str, paths)]) == 0
    assert "Of 1 cases: 1 unknown." in capsys.readouterr().out


def test_what_cannot_measure_is_named(tmp_path, capsys):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    pythons = [sys.executable, str(broken)]
    command = ["bench", "compare", *pythons, "--shape", "2,64,64"]
    assert main([*command, "--group-size", "32", "--hot"]) == 1
    said = capsys.readouterr().err
    assert str(broken) in said and "it is broken" in said and said.count("\n") == 1


def test_a_python_is_told_from_a_run(tmp_path):
    assert in_turns.interpreter(sys.executable) == Path(sys.executable)
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    assert in_turns.interpreter(environment) is None
    (environment / "bin" / "python").symlink_to(sys.executable)
    assert in_turns.interpreter(environment) == environment / "bin" / "python"
    assert in_turns.interpreter(tmp_path / "absent.json") is None
    run = tmp_path / "run.json"
    run.write_text("{}")
    assert in_turns.interpreter(run) is None

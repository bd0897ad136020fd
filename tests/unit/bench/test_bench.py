"""Measuring: orders, intervals, capsules, and the command."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble.bench import capsule, kernels, machine, peaks, products, statistics
from mlx_nibble.bench.products import Pools, ProductCase
from mlx_nibble.machine import turns
from mlx_nibble.machine.turns import (
    ChainCandidate,
    balanced_orders,
    take_pass,
    warm_up,
)
from tests.support.commands import nibble
from tests.support.paths import ROOT

SCHEMA = json.loads((ROOT / "docs" / "reference" / "capsule.schema.json").read_text())
CASE = ProductCase(3, 40, 64, 4, 32, "float32")


@pytest.mark.parametrize("count", range(1, 8))
def test_each_follows_each_other_one_equally_often(count):
    orders = balanced_orders(count)
    assert all(sorted(order) == list(range(count)) for order in orders)
    first = Counter(order[0] for order in orders)
    assert len(set(first.values())) == 1
    follows = Counter(pair for o in orders for pair in zip(o, o[1:], strict=False))
    assert len(follows) == count * (count - 1)
    assert len(set(follows.values())) <= 1


def test_two_take_turns_as_abba():
    taken = []
    candidates = {
        name: ChainCandidate(lambda times, name=name: taken.append(name))
        for name in "ab"
    }
    for _ in range(4):
        take_pass(candidates, seconds=0)
    assert "".join(taken) == "abba" * 2
    assert [len(passes) for passes in candidates["a"].passes] == [1] * 4


def test_short_work_is_chained_and_slow_work_tried_once():
    calls = []
    quick, slow = (ChainCandidate(calls.append) for _ in range(2))
    warm_up(quick, limit=math.inf)
    assert calls[:2] == [1, 1] and quick.length == calls[-1] > 1
    calls.clear()
    assert warm_up(slow, limit=0) > 0
    assert calls == [1]


def test_the_interval_of_a_median_holds_as_often_as_it_says():
    rng = np.random.default_rng(1)
    runs = [statistics.median(rng.lognormal(0, 0.3, 60)) for _ in range(60)]
    held = sum(1.0 in estimate for estimate in runs)
    # 95 % of 60, minus four standard deviations.
    assert held >= 57 - 4 * math.sqrt(60 * 0.05 * 0.95)
    assert all(e.low <= e.value <= e.high for e in runs)
    one = statistics.median([2.5])
    assert (one.low, one.value, one.high) == (2.5, 2.5, 2.5)


def test_a_product_is_the_dequantized_one():
    pool = Pools(hot=True)
    (w, scales, biases) = next(pool.take(CASE, "quantized"))
    x = mx.random.normal((CASE.rows, CASE.K))
    w_hat = mx.dequantize(w, scales, biases, CASE.group_size, CASE.bits)
    exact = products.dense(x, w_hat)
    for product in (products.nibble(CASE), products.mlx(CASE)):
        assert mx.allclose(product(x, w, scales, biases), exact, rtol=1e-4, atol=1e-4)
    assert w.nbytes + scales.nbytes + biases.nbytes == CASE.weight_bytes


def test_cold_weights_are_larger_than_the_cache():
    case = ProductCase(1, 4096, 4096, 8, 64, "float16")
    pool = Pools(hot=False)
    weights = pool.take(case, "quantized")
    seen = []
    while not any(a is seen[0][0] for a, *_ in seen[1:]):
        seen.append(next(weights))
    size = sum(a.nbytes for w in seen[:-1] for a in w)
    assert size >= 4 * machine.last_level_cache_bytes()
    assert pool.take(case, "quantized") is weights
    pool.renew()
    assert pool.take(case, "quantized") is not weights


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_product_waits_for_the_one_before(device, monkeypatch):
    # On a GPU by its reads; on the CPU by its place in the graph.
    class Device:
        type = getattr(mx.DeviceType, device)

    monkeypatch.setattr(mx, "default_device", lambda: Device)
    x, y = mx.zeros((2, 4)), mx.ones((2, 3))
    if device == "gpu":
        linked = turns.link(x, y)
        assert linked.tolist() == [[1, 0, 0, 0]] * 2
    else:
        assert mx.array_equal(turns.link(x, y), x)


def test_peaks_are_plausible():
    found = peaks.measure("float32")
    # Slower than any machine that runs this, and faster than any machine.
    assert 1e8 < found.read_bytes_per_second < 1e14
    assert 1e8 < found.flops_per_second < 1e16


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "run.json"
    shapes = ["--shape", "2,40,64", "--shape", "48,64", "--rows", "1", "3"]
    result = nibble(
        *["bench", "kernels", *shapes, "--group-size", "32", "--seconds", "0.1"],
        *["--hot", "--passes", "6", "--output", str(path)],
    )
    assert result.returncode == 0, result.stderr
    assert "3 × 48 × 64" in result.stdout
    assert f"wrote {path}" in result.stderr
    return path


def test_a_run_is_what_the_schema_says(run):
    found = json.loads(run.read_text())
    jsonschema.validate(found, SCHEMA)
    assert capsule.read(run) == found
    assert found["complete"]
    assert found["command"][:5] == ["nibble", "bench", "kernels", "--shape", "2,40,64"]
    assert [r["case"]["rows"] for r in found["results"]] == [2, 1, 3]
    for result in found["results"]:
        assert set(result["candidates"]) == {"nibble", "mlx", "dense"}
        for candidate in result["candidates"].values():
            assert len(candidate["passes"]) == 6
    rows = list(kernels.rows(found))
    assert len(rows) == 9
    assert all(row.seconds.value > 0 and row.faster.value > 0 for row in rows)
    assert {row.faster.value for row in rows if row.name == "nibble"} == {1.0}


def test_json_is_the_capsule_and_no_file(tmp_path):
    options = [
        "--shape",
        "1,40,64",
        "--seconds",
        "0.01",
        "--passes",
        "1",
        "--null",
        "--hot",
    ]
    result = nibble("bench", "kernels", *options, "--json", cwd=tmp_path)
    found = json.loads(result.stdout)
    jsonschema.validate(found, SCHEMA)
    assert list(found["results"][0]["candidates"]) == ["nibble", "nibble again"]
    assert os.listdir(tmp_path) == []


def test_what_takes_too_long_is_left_out_and_named(tmp_path):
    path = tmp_path / "run.json"
    options = ["--shape", "64,2048,2048", "--seconds", "0.0001", "--passes", "1"]
    result = nibble("bench", "kernels", *options, "--output", str(path))
    assert result.returncode == 0, result.stderr
    assert "mlx left out of 64 × 2048 × 2048" in result.stdout
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)


# Runs a command, and says so when a case has been measured.
SAYING = """
import sys
from mlx_nibble.bench import kernels, machine
from mlx_nibble.cli import main
take = kernels.take_quiet_pass
def take_and_say(*arguments):
    disturbed = take(*arguments)
    print("measured", file=sys.stderr, flush=True)
    return disturbed
kernels.take_quiet_pass = take_and_say
machine.last_level_cache_bytes = lambda: 4 << 20
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupted_run_keeps_what_is_done(tmp_path):
    path = tmp_path / "run.json"
    command = ["bench", "kernels", "--shape", "1,64,64", "--shape", "1,512,512"]
    command += ["--hot", "--passes", "1000", "--output", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-c", SAYING, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while (line := process.stderr.readline()) and "measured" not in line:
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "1 × 64 × 64" in out
    found = capsule.read(path)
    jsonschema.validate(found, SCHEMA)
    assert not found["complete"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "usage: nibble bench PART"),
        (["cook"], 2, "there is no part 'cook'"),
        (["kernels", "--shape", "1"], 2, "M,N,K or N,K is required but got '1'"),
        (["kernels", "--shape", "1,2,3"], 1, "K must be a multiple of the group size"),
        (["kernels", "--shape", "0,64,64"], 1, "M, N and K must be positive"),
        (["kernels", "--passes", "0"], 2, "must be positive"),
        (["kernels", "--output", "no/such"], 1, "a file that can be written"),
        (["compare", "absent.json", "b.json"], 1, "No such file"),
    ],
)
def test_mistakes_are_one_line(arguments, status, message, tmp_path):
    result = nibble("bench", *arguments, cwd=tmp_path)
    assert result.returncode == status
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.clear(),
        lambda c: c.update(schema="mlx-nibble/bench/0"),
        lambda c: c.update(kind="cake"),
        lambda c: c.update(results=7),
        lambda c: c["results"][0].pop("case"),
        lambda c: c["results"][0]["candidates"].update(mlx=[]),
        lambda c: c["results"][0]["candidates"]["mlx"].update(passes=[[0.0]]),
        lambda c: c["results"][0]["candidates"]["mlx"].update(passes=[["1"]]),
        lambda c: c["results"][0]["candidates"]["mlx"].update(passes=[[math.nan]]),
    ],
)
def test_a_strange_file_is_refused(run, damage, tmp_path):
    found = json.loads(run.read_text())
    damage(found)
    path = tmp_path / "strange.json"
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"\[bench\] a capsule was required but"):
        capsule.read(path)


def test_no_json_is_refused(tmp_path):
    path = tmp_path / "strange.json"
    for text in ("", "{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError, match="a capsule was required"):
            capsule.read(path)

"""``nibble tune``: the measurements, the decision from samples, and the command."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import mlx.core as mx
import pytest

from mlx_nibble.bench import capsule
from mlx_nibble.cli import main
from mlx_nibble.cli.tune import of_one_matrix
from mlx_nibble.machine import tuned_table
from mlx_nibble.machine.tuned_table import LEAVE_TO_MLX, Choice
from mlx_nibble.machine.turns import ChainCandidate
from mlx_nibble.tune import decide as decide_module
from mlx_nibble.tune import problems, timing
from mlx_nibble.tune.decide import LEAST_GAIN, PASSES, contenders, decide
from mlx_nibble.tune.problems import Problem
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

# Recorded by `nibble tune` on two cores; the planner's choice comes first.
RECORDED = json.loads((Path(__file__).parent / "recorded" / "tune.json").read_text())
SCHEMA = json.loads((ROOT / "docs" / "reference" / "capsule.schema.json").read_text())
SMALL = ["tune", "--shape", "64,64", "--group-size", "32", "--rows", "1", "2"]


@pytest.fixture
def hurried(monkeypatch) -> None:
    """Limit the passes: on a busy machine small products would take a minute."""
    for module in (decide_module, timing):
        monkeypatch.setattr(module, "PASSES", PASSES[:1])


def scaled(passes, factor: float):
    return [[factor * s for s in taken] for taken in passes]


@pytest.mark.parametrize("record", RECORDED, ids=lambda r: r["product"])
def test_the_choice_is_a_function_of_the_samples(record):
    samples = record["samples"]
    choice = decide(samples)
    assert choice.name == record["choice"]
    assert decide(samples) == choice
    # Neither the order of the others nor the unit of time matters.
    own, *others = samples
    random.Random(0).shuffle(others)
    assert decide({name: samples[name] for name in (own, *others)}) == choice
    in_ms = {name: scaled(passes, 2.0**10) for name, passes in samples.items()}
    assert decide(in_ms) == choice


@pytest.mark.parametrize("record", RECORDED, ids=lambda r: r["product"])
def test_ties_and_noise_go_to_the_planner(record):
    own = next(iter(record["samples"].values()))[: PASSES[0]]
    assert decide({"own": own}) == Choice(None)
    assert decide({"own": own, "same": own, LEAVE_TO_MLX: own}) == Choice(None)
    little = 1 + LEAST_GAIN / 2
    assert decide({"own": own, "little": scaled(own, 1 / little)}) == Choice(None)
    # Much faster in most passes but slower in some: still noise.
    mixed = [scaled([t], 1.5 if i % 3 == 0 else 0.7)[0] for i, t in enumerate(own)]
    assert decide({"own": own, "mixed": mixed}) == Choice(None)
    assert contenders({"own": own, "mixed": mixed, "same": own}, "own") == {"mixed"}
    assert contenders({"own": own, "mixed": mixed}, "mixed") == {"own"}


@pytest.mark.parametrize("record", RECORDED, ids=lambda r: r["product"])
def test_a_tie_may_be_mlx_s(record):
    """The rule of a GPU."""
    own = next(iter(record["samples"].values()))[: PASSES[0]]
    little = scaled(own, 1 / (1 + LEAST_GAIN / 2))
    for samples in (
        {"own": own, LEAVE_TO_MLX: own},
        {"own": little, LEAVE_TO_MLX: own},
        {"own": own, "other": little, LEAVE_TO_MLX: own},
    ):
        assert decide(samples, LEAVE_TO_MLX).name == LEAVE_TO_MLX
        assert decide(samples).name is None
    faster = {"own": scaled(own, 0.5), LEAVE_TO_MLX: own}
    assert decide(faster, LEAVE_TO_MLX) == Choice(None)
    other = {"own": own, "other": scaled(own, 0.5), LEAVE_TO_MLX: own}
    assert decide(other, LEAVE_TO_MLX) == Choice("other", pytest.approx(2))
    # It was dropped early, or could not be measured.
    assert decide({"own": own, LEAVE_TO_MLX: own[:2]}, LEAVE_TO_MLX) == Choice(None)
    assert decide({"own": own}, LEAVE_TO_MLX) == Choice(None)


@pytest.mark.parametrize("record", RECORDED, ids=lambda r: r["product"])
def test_after_all_passes_the_median_decides(record):
    own = next(iter(record["samples"].values()))[: PASSES[0]]
    own = [own[i % len(own)] for i in range(PASSES[-1])]
    # 3 % faster in most passes, and slower in more than noise explains.
    mixed = [scaled([t], 1.5 if i % 5 < 2 else 1 / 1.03)[0] for i, t in enumerate(own)]
    less = scaled(own, 1 / (1 + LEAST_GAIN / 2))
    samples = {"own": own, "mixed": mixed, "less": less}
    assert "mixed" in contenders(samples, "own")
    assert decide(samples) == Choice("mixed", pytest.approx(1.03))
    fewer = {name: passes[: PASSES[-2]] for name, passes in samples.items()}
    assert decide(fewer) == Choice(None)


def test_a_contest_ends_when_nobody_can_beat_who_is_chosen():
    def entrant(seconds: list[float]) -> ChainCandidate:
        return ChainCandidate(lambda times: None, passes=[[s] for s in seconds])

    taken = PASSES[0]
    by_name = {
        "own": entrant([1.0] * taken),
        "like it": entrant([0.99] * taken),
        "open": entrant([0.9 + 0.02 * i for i in range(taken)]),
        "asked for": entrant([1.2] * taken),
    }
    contest = timing.Contest(
        dict(by_name), dict(by_name), kept=frozenset({"own", "asked for"})
    )
    assert not contest.settled(timing.choose_fastest)
    assert contest.active.keys() == {"own", "open", "asked for"}
    del contest.active["open"], contest.everyone["open"]
    assert contest.settled(timing.choose_fastest)
    # Against a slow candidate the others can win.
    assert not contest.settled(lambda samples: "asked for")


@pytest.mark.parametrize("record", RECORDED, ids=lambda r: r["product"])
def test_who_wins_beyond_noise_is_taken(record):
    own = next(iter(record["samples"].values()))
    samples = {"own": own, LEAVE_TO_MLX: scaled(own, 1 / 1.3), "b": scaled(own, 0.9)}
    choice = decide(samples)
    assert choice.name == LEAVE_TO_MLX and choice.faster == pytest.approx(1.3)
    # A candidate that was dropped early does not win, however fast it was.
    samples[LEAVE_TO_MLX] = samples[LEAVE_TO_MLX][:2]
    assert decide(samples).name == "b"


def test_the_default_products_are_those_of_the_models_that_bench_names():
    shapes = problems.default_shapes()
    assert len(shapes) == len(set(shapes)) and (4096, 14336) in shapes
    made = problems.of_shapes(shapes, problems.ROWS, None, 4, 64, None)
    assert len(made) == len(shapes) * len(problems.ROWS)
    assert all(p.candidates()[-1] == LEAVE_TO_MLX for p in made)
    assert len({p.key for p in made}) == len(made)


def test_a_model_s_products_are_its_matrices(tmp_path):
    def matrix(name, N, K, bits=4, group_size=32):
        w = mx.quantize(mx.random.normal((N, K)), group_size, bits)
        parts = zip(("weight", "scales", "biases"), w, strict=True)
        return {f"{name}.{part}": array for part, array in parts}

    tensors = matrix("model.layers.0.q_proj", 96, 64)
    tensors |= matrix("model.layers.1.q_proj", 96, 64)
    tensors |= matrix("model.layers.0.down_proj", 64, 96, 8, 32)
    tensors |= matrix("model.embed_tokens", 128, 64)
    symmetric = matrix("model.layers.0.up_proj", 32, 64)
    scales = symmetric["model.layers.0.up_proj.scales"]
    symmetric["model.layers.0.up_proj.biases"] = -8 * scales
    tensors |= symmetric
    w, scales = mx.quantize(mx.random.normal((96, 128)), mode="mxfp4")
    tensors |= {"model.layers.0.gate_proj.weight": w}
    tensors |= {"model.layers.0.gate_proj.scales": scales}
    tensors["model.norm.weight"] = mx.ones((64,))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    own = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    config = {"quantization": {"group_size": 32, "bits": 4}}
    config["quantization"] |= {"model.layers.0.gate_proj": own}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = problems.of_model(tmp_path, (1, 8), None, "int8")
    matrices = {(p.N, p.K, p.bits, p.mode, p.symmetric) for p in found}
    assert matrices == {
        (96, 64, 4, "affine", False),
        (64, 96, 8, "affine", False),
        (128, 64, 4, "affine", False),
        (32, 64, 4, "affine", True),
        (96, 128, 4, "mxfp4", False),
    }
    assert len(found) == 10 and {p.activations for p in found} == {"int8"}
    # With an output matrix beside it, the embedding is only looked up.
    more = tensors | matrix("lm_head", 160, 64)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), more)
    shapes = {(p.N, p.K) for p in problems.of_model(tmp_path, (1,), None, None)}
    assert (160, 64) in shapes and (128, 64) not in shapes
    empty = {"model.norm.weight": mx.ones((64,))}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), empty)
    with pytest.raises(ValueError, match="quantized matrices that our kernels support"):
        problems.of_model(tmp_path, (1,), None, None)


@pytest.mark.parametrize(
    ("mode", "form"), [("affine", ["bfloat16"]), ("mxfp4", ["uint8"])]
)
def test_all_candidates_take_turns_and_mlx_is_never_left_out_silently(
    hurried, mode, form
):
    problem = Problem(2, 64, 64, 4, 32, "float32", *form, mode=mode)
    (contest,) = timing.measure([problem], lambda what, step, total: None).values()
    tried = contest.samples.keys() | contest.given_up.keys()
    assert tried == set(problem.candidates())
    own = problem.candidates()[0]
    assert next(iter(contest.samples)) == own
    assert len(contest.samples[own]) in PASSES


def test_inspect_counts_what_is_tuned(tables, tmp_path, capsys):
    arrays = dict(
        zip(
            ("weight", "scales", "biases"),
            mx.quantize(mx.random.normal((96, 64)), 32, 4),
            strict=True,
        )
    )
    tensors = {f"model.layers.{i}.q.{n}": a for i in (0, 1) for n, a in arrays.items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    config = {"quantization": {"group_size": 32, "bits": 4}}
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes += ("intermediate_size", "vocab_size")
    (tmp_path / "config.json").write_text(json.dumps(config | dict.fromkeys(sizes, 64)))
    assert main(["inspect", str(tmp_path)]) == 0
    assert "nibble tune" not in capsys.readouterr().out
    (problem,) = problems.of_shapes([(96, 64)], (1,), None, 4, 32, None)
    tuned_table.save({problem.key: Choice(LEAVE_TO_MLX, 1.5)})
    assert main(["inspect", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 matrices are multiplied as nibble tune found fastest" in said


def test_show_tells_what_a_duel_found(tables, capsys):
    (problem,) = problems.of_shapes([(96, 64)], (1,), None, 4, 32, None)
    tuned_table.save({problem.key: Choice(None, 1.31, tuned_table.DUEL)})
    assert main(["tune", "--show"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the planner's duel 1.31×" in said and "After a duel" in said
    # `nibble tune` measures it itself.
    command = ["tune", "--shape", "96,64", "--group-size", "32", "--rows", "1"]
    assert main([*command, "--dry-run"]) == 0
    assert "1 products to measure" in capsys.readouterr().out


def test_products_of_one_matrix_are_measured_together():
    made = problems.of_shapes([(64, 64), (32, 64)], (1, 2, 4), None, 4, 32, None)
    assert [len(same) for same in of_one_matrix(made)] == [3, 3]


def test_the_command(hurried, tables, tmp_path, capsys):
    assert main([*SMALL, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "2 products to measure" in captured.out and not tables.exists()
    samples = tmp_path / "samples.json"
    assert main([*SMALL, "--json", "--output", str(samples)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["rows"] for c in found["choices"]] == [1, 2]
    assert found["machine"] == tuned_table.machine()
    assert len(tuned_table.load()) == 2
    made = capsule.read(samples)
    jsonschema.validate(made, SCHEMA)
    assert made["complete"] and len(made["results"]) == 2
    # The samples alone give the same choices.
    for result in made["results"]:
        passes = {
            name: candidate["passes"]
            for name, candidate in result["candidates"].items()
            if "passes" in candidate
        }
        choice = decide(passes)
        assert tuned_table.load()[Problem(**result["case"]).key].name == choice.name
    # A second run measures the rest.
    before = tuned_table.path().stat().st_mtime_ns
    assert main(SMALL) == 0
    captured = capsys.readouterr()
    assert "2 products:" in captured.out and "1 × 64 × 64" in captured.out
    assert tuned_table.path().stat().st_mtime_ns == before
    assert main([*SMALL[:-2], "1", "4", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["known"] == 1 and [p["rows"] for p in planned["measure"]] == [4]
    assert main([*SMALL, "--again", "--dry-run"]) == 0
    assert "2 products to measure" in capsys.readouterr().out
    assert main(["tune", "--show"]) == 0
    assert "2 × 64 × 64" in capsys.readouterr().out
    assert main(["tune", "--clear"]) == 0
    assert f"Removed {tuned_table.path()}" in capsys.readouterr().out.replace("\n", "")
    assert main(["tune", "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": None}
    assert main(["tune", "--show"]) == 0
    assert "0 products" in capsys.readouterr().out


def test_an_interrupted_run_keeps_the_matrices_that_are_done(tables):
    command = [sys.executable, "-m", "mlx_nibble.cli", "tune", "--group-size", "32"]
    # The second would take a minute.
    shapes = ["--shape", "64,64", "8192,8192", "--rows", "1", "512"]
    process = subprocess.Popen(
        [*command, *shapes], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (
        tables.exists() and tuned_table.path().exists()
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert {key.N for key in tuned_table.load()} == {64}
    assert "512 × 64 × 64" in out
    assert [path.name for path in tables.iterdir()] == [tuned_table.path().name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/folder"], "'no/such/folder' does not exist"),
        (["--shape", "64,63"], "K must be a multiple of the group size"),
        (["--shape", "64,64", "--output", "no/such"], "a file that can be written"),
    ],
)
def test_mistakes_are_one_line(tables, arguments, message, capsys):
    assert main(["tune", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--shape", "64"], ["--rows", "0"], ["--show", "--clear"]]
)
def test_a_wrong_command_line_is_said(tables, arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["tune", *arguments])
    assert "usage: nibble tune" in capsys.readouterr().err

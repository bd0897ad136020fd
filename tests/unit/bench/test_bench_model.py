"""Measuring a model: the schedule, the capsule and the printed table."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_nibble import lm
from mlx_nibble.bench import capsule, generation, rates
from mlx_nibble.bench.subject import INT8, INVARIANT, OURS, STOCK, Subject
from mlx_nibble.cli import main
from mlx_nibble.pictures import page
from tests.support import model_folders
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

SCHEMA = json.loads((ROOT / "docs" / "reference" / "capsule.schema.json").read_text())
PROMPTS = [[5, 9, 3, 7, 1, 8], [2, 2, 9, 4, 6, 3], [7, 1, 1, 5, 5, 9]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return model_folders.imported(tmp_path_factory.mktemp("models") / "tiny")


def logits(model) -> np.ndarray:
    return np.array(model(mx.array(PROMPTS)))


def test_a_subject_computes_as_each_configuration_and_is_itself_again(folder):
    model, _ = lm.load_as_it_is(str(folder))
    stock, _ = lm.load_stock(str(folder))
    ours = {
        c: lm.load(
            str(folder), activations=c.activations, batch_invariant=c.batch_invariant
        )[0]
        for c in (OURS, INT8, INVARIANT)
    }
    subject = Subject([model])
    for configuration in (OURS, STOCK, INT8, STOCK, INVARIANT, OURS):
        subject.become(configuration)
        alone = ours.get(configuration, stock)
        assert np.array_equal(logits(model), logits(alone)), configuration.name
        # The same layers with the same types: neither slower nor larger.
        assert [type(m) for m in model.modules()] == [type(m) for m in alone.modules()]
        assert subject.nbytes(1) == sum(
            a.nbytes for _, a in tree_flatten(alone.parameters())
        )
        assert (lm.loops.mx is mx) == (configuration is STOCK)
    with subject:
        pass
    untouched, _ = lm.load_as_it_is(str(folder))
    assert lm.loops.mx is mx
    for own, other in zip(model.modules(), untouched.modules(), strict=True):
        assert type(own) is type(other)
    for own, other in zip(
        *(tree_flatten(m.parameters()) for m in (model, untouched)), strict=True
    ):
        assert own[1].dtype == other[1].dtype and mx.array_equal(own[1], other[1])


@pytest.mark.parametrize(
    ("mode", "prompts"),
    [
        (generation.plain(), PROMPTS[:1]),
        (generation.batched(), PROMPTS),
        (generation.speculative(2), PROMPTS[:1]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_answer_may_begin_often_where_the_prompt_ends(folder, mode, prompts):
    models = [lm.load(str(folder))[0] for _ in range(mode.models)]
    assert mode.read(models, prompts, 4) > 0
    state = mode.begin(models, prompts, 4)
    assert state.tokens == [prompt[-1] for prompt in prompts]

    def held():
        return [np.array(a) for c in state.caches for layer in c for a in layer.state]

    before = held()
    for _ in range(2):
        answer = mode.answer(models, state, 5)
        assert answer.seconds > 0
        assert answer.tokens == 5 if mode.name != "speculative" else answer.tokens >= 5
    assert all(map(np.array_equal, before, held()))
    # A model accepts every token that it drafts for itself.
    assert answer.accepted == (1.0 if mode.name == "speculative" else None)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run.json"
    options = [
        "--batch",
        "1",
        "3",
        "--context",
        "8",
        "20",
        "--draft-model",
        str(folder),
    ]
    options += ["--activations", "int8", "--batch-invariant", "--max-tokens", "3"]
    options += ["--seconds", "0.2", "--passes", "5", "--output", str(path)]
    assert main(["bench", "model", str(folder), *options]) == 0
    return path


def test_a_run_is_what_the_schema_says(run, folder):
    found = json.loads(run.read_text())
    jsonschema.validate(found, SCHEMA)
    assert capsule.read(run) == found
    assert found["complete"] and found["kind"] == "model"
    assert found["settings"]["model"] == "tiny"
    assert found["command"][:4] == ["nibble", "bench", "model", "tiny"]
    assert str(folder.parent) not in run.read_text()
    cases = [tuple(result["case"].values()) for result in found["results"]]
    assert cases == [
        (measure, mode, batch, context)
        for context in (8, 20)
        for mode, batch in (("plain", 1), ("batched", 3), ("speculative", 1))
        for measure in ("prompt", "decode")
    ]
    for result in found["results"]:
        assert list(result["candidates"]) == [
            c.name for c in (OURS, INT8, INVARIANT, STOCK)
        ]
        for candidate in result["candidates"].values():
            if "skipped" in candidate:
                continue
            assert len(candidate["passes"]) == 5
            absent = sum(not taken for taken in candidate["passes"])
            assert absent == 0 or "limited" in candidate
            assert candidate["peak_bytes"] > 0
    for row in rates.rows(found):
        rate = row.tokens_per_second
        assert rate.low <= rate.value <= rate.high
        assert (row.first_token_seconds is None) == (row.case.measure == "decode")
        assert (row.accepted is None) == (
            (row.case.mode, row.case.measure) != ("speculative", "decode")
        )


@pytest.mark.parametrize("name", ["all.svg", "all.png", "page.html"])
def test_it_is_drawn(run, name, tmp_path):
    assert main(["bench", "plot", str(run), str(tmp_path / name)]) == 0
    assert (tmp_path / name).stat().st_size > 1000


def test_a_part_of_another_kind_is_refused(run, tmp_path, capsys):
    options = ["bench", "plot", str(run), str(tmp_path / "a.svg"), "--part", "roofline"]
    assert main(options) == 1
    assert "parts of a run of the kind 'model' are overview" in capsys.readouterr().err


def test_the_page_names_what_strangers_wrote_as_text(run):
    made = capsule.read(run)
    made["settings"]["model"] = "<script>alert(1)</script>"
    assert "<script" not in page.report(made)
    assert page.report(made).count("<svg") == 2


def test_what_a_peer_cannot_do_in_time_is_left_out_and_said(folder, capsys):
    options = [
        "--batch",
        "1",
        "--context",
        "300",
        "--seconds",
        "0.001",
        "--passes",
        "1",
    ]
    assert main(["bench", "model", str(folder), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, SCHEMA)
    reading, answering = (result["candidates"] for result in found["results"])
    assert "it would need about" in reading["mlx"]["skipped"]
    assert "it would need about" in answering["mlx"]["skipped"]
    assert reading["nibble"]["passes"][0] and answering["nibble"]["passes"][0]


@pytest.mark.parametrize("wait", [0.0, 6.0])
def test_an_interrupted_run_keeps_what_is_done(folder, wait, tmp_path):
    path = tmp_path / "run.json"
    options = ["--context", "8", "16", "--batch", "1", "--passes", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_nibble.cli", "bench", "model", str(folder)]
        + [*options, "--seconds", "3", "--output", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        time.sleep(wait)
    else:
        time.sleep(1)  # it is importing, or loading
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "interrupted" in err
    if path.exists():
        found = capsule.read(path)
        jsonschema.validate(found, SCHEMA)
        assert not found["complete"] and found["results"]
        assert "prompt" in out and f"wrote {path}" in err
    else:
        assert out == ""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["./absent"], 1, "PATH './absent' does not exist"),
        (["{file}"], 1, "is a file"),
        (["{empty}"], 1, "has no config.json"),
        (["{folder}", "--draft-model", "./absent"], 1, "--draft-model './absent' does"),
        (["{folder}", "--batch", "0"], 2, "--batch and --num-draft-tokens must be"),
        (["{folder}", "--context", "1"], 2, "--context must be at least 2"),
        (["{folder}", "--seconds", "0"], 2, "must be positive"),
        (["{folder}", "--plot", "a.gif"], 1, "must be named .png or .svg"),
        (["{folder}", "--output", "no/such"], 1, "a file that can be written"),
    ],
)
def test_mistakes_are_one_line(arguments, status, message, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.gguf").touch()
    places = {
        "folder": folder,
        "empty": tmp_path / "empty",
        "file": tmp_path / "file.gguf",
    }
    arguments = [argument.format_map(places) for argument in arguments]
    try:
        assert main(["bench", "model", *arguments]) == status
    except SystemExit as end:
        assert end.code == status
    err = capsys.readouterr().err
    assert message in err
    assert status == 2 or err.count("\n") == 1


def test_two_runs_are_compared_in_all_of_our_modes(run, tmp_path, capsys):
    made = capsule.read(run)
    slower = json.loads(json.dumps(made))
    for result in slower["results"]:
        passes = result["candidates"]["nibble int8"]["passes"]
        passes[:] = [[3 * s for s in taken] for taken in passes]
    # Enough passes for an interval of each.
    for one in (made, slower):
        for result in one["results"]:
            for candidate in result["candidates"].values():
                taken = [p for p in candidate.get("passes", ()) if p]
                if taken:
                    candidate["passes"] = taken[:1] * 8
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, one in zip(paths, (made, slower), strict=True):
        capsule.write(one, path)
    compare = ["bench", "compare", *map(str, paths)]
    with pytest.raises(SystemExit, match="1"):
        main(compare)
    said = capsys.readouterr().out
    assert "decode, context 8, batch 3, int8" in said
    assert "batch-invariant" not in said
    slower["settings"]["model"] = "another"
    capsule.write(slower, paths[1])
    assert main(compare) == 1
    assert "the setting 'model' must be the same" in capsys.readouterr().err

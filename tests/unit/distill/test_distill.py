"""Distillation of tiny models: what it gains, continues, keeps and refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble import lm
from mlx_nibble.cli import main
from mlx_nibble.conversion.convert import convert
from mlx_nibble.conversion.options import Calibration, Options
from mlx_nibble.distill.distill import distill
from mlx_nibble.distill.options import CODES, Training
from mlx_nibble.distill.pipeline import quantize_and_distill
from mlx_nibble.distill.targets import divergence
from mlx_nibble.distill.variables import Variables, find_matrices
from mlx_nibble.io.checkpoint import read_checkpoint
from mlx_nibble.io.folder import work_folder
from mlx_nibble.layerwise.matrices import parameters
from mlx_nibble.quantize.method import Method
from tests.support import model_folders, tiny_models

TEXT = Calibration("builtin", samples=16, length=32)
RTN = Method("affine", gptq=False, sweeps=0)
SHORT = Training(steps=16, learning_rate=0.02)


def write(folder, family="llama"):
    sizes = {"vocab_size": model_folders.VOCABULARY, "num_hidden_layers": 2}
    config = tiny_models.config(family, **sizes)
    return model_folders.write(folder, tiny_models.build(family, **sizes), config)


def quantized(folder, original, symmetric=False):
    rule = "symmetric" if symmetric else "affine"
    settings = Options(
        bits=3, group_size=32, method=replace(RTN, rule=rule), symmetric=symmetric
    )
    convert(str(original), folder, settings)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    original = write(folder / "original")
    return original, quantized(folder / "start", original)


def weights(folder):
    return {k: np.array(v.astype(mx.float32)) for k, v in tensors(folder).items()}


def tensors(folder):
    return read_checkpoint(folder, "test")[1]


@pytest.mark.parametrize("codes", CODES)
def test_training_lowers_the_divergence(models, tmp_path, codes):
    original, start = models
    training = Training(steps=32, learning_rate=0.02, codes=codes)
    made = distill(str(start), str(original), tmp_path / "out", training, TEXT)
    assert min(made.losses) < 0.9 * made.losses[0]
    assert [row["path"] for row in made.layers] == ["model.layers.0", "model.layers.1"]
    assert all(row["trained"] < row["start"] < 1 for row in made.layers)
    before, after = tensors(start), tensors(made.path)
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {
        k: (v.shape, v.dtype) for k, v in after.items()
    }
    words = [k for k, v in before.items() if v.dtype == mx.uint32]
    same = all(mx.array_equal(before[k], after[k]) for k in words)
    assert same == (codes == "none")
    moved = all(row.get("codes", 0) > 0 for row in made.changes)
    assert moved == (codes == "together")


def test_the_start_is_the_quantized_model(models):
    """Variables of zero stand for the tensors that are there, bit for bit."""
    original, start = models
    model, _ = lm.load_full_precision(start, dequantize=False)
    dense, _ = lm.load_full_precision(original)
    before = tensors(start)
    for originals in (None, parameters(dense)):
        variables = Variables(find_matrices(model), {}, originals)
        for path, value in variables.stored(variables.start).items():
            assert mx.array_equal(value, before[path]), path


def test_experts_are_trained(tmp_path):
    original = write(tmp_path / "original", "qwen3_moe")
    start = quantized(tmp_path / "start", original)
    made = distill(str(start), str(original), tmp_path / "out", SHORT, TEXT)
    assert min(made.losses) < made.losses[0]
    experts = [r for r in made.changes if "switch_mlp" in r["path"]]
    assert experts and all(r["stretch"] > 0 for r in experts)


def test_symmetric_matrices_stay_symmetric(models, tmp_path):
    original, _ = models
    start = quantized(tmp_path / "start", original, symmetric=True)
    made = distill(str(start), str(original), tmp_path / "out", SHORT, TEXT)
    assert min(made.losses) < made.losses[0]
    after = weights(made.path)
    for path in (k for k in after if k.endswith(".scales")):
        biases = after[path.replace("scales", "biases")]
        np.testing.assert_array_equal(biases, -4 * after[path])


class Killed(BaseException):
    pass


SLOW = Training(steps=16, learning_rate=0.01)


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    original, start = models
    out = tmp_path_factory.mktemp("whole") / "out"
    return distill(str(start), str(original), out, SLOW, TEXT)


@pytest.mark.parametrize(
    ("how", "step"), [(Killed, 0), (Killed, 5), (KeyboardInterrupt, 15)]
)
def test_a_stopped_run_continues_with_the_same_result(
    models, whole, tmp_path, monkeypatch, how, step
):
    original, start = models
    monkeypatch.setattr("mlx_nibble.distill.train._SAVE_EVERY", -1)

    def stop(what, done, total):
        if what == "Training" and done == step:
            raise how

    out = tmp_path / "out"
    with pytest.raises(how):
        distill(str(start), str(original), out, SLOW, TEXT, stop)
    assert not out.exists()
    read = []
    made = distill(
        str(start), str(original), out, SLOW, TEXT, lambda what, *_: read.append(what)
    )
    assert "Reading the original's predictions" not in read
    assert made.losses == whole.losses
    expected = tensors(whole.path)
    for path, value in tensors(made.path).items():
        assert mx.array_equal(value, expected[path]), path
    assert not work_folder(out).exists()


def test_trained_blocks_survive_a_kill(models, tmp_path):
    original, start = models
    training = Training(steps=8, learning_rate=0.02, codes="blocks")

    def stop(what, done, total):
        if what == "Training blocks" and done == 1:
            raise Killed

    def run(out, progress):
        return distill(str(start), str(original), out, training, TEXT, progress)

    out = tmp_path / "out"
    with pytest.raises(Killed):
        run(out, stop)
    kept = {p.name: p.stat().st_mtime_ns for p in work_folder(out).glob("block-*")}
    assert list(kept) == ["block-00000.safetensors"]
    states = []

    def look(what, done, total):
        if what == "Training" and done == 0:
            blocks = work_folder(out).glob("block-*")
            states.append({p.name: p.stat().st_mtime_ns for p in blocks})

    made = run(out, look)
    assert states[0].items() >= kept.items() and len(states[0]) == 2
    whole = tensors(run(tmp_path / "whole", lambda *_: None).path)
    for path, value in tensors(made.path).items():
        assert mx.array_equal(value, whole[path]), path


def test_memory_decides_how_codes_are_trained(monkeypatch):
    monkeypatch.setattr(mx, "get_memory_limit", lambda: 40_000)
    usual = Training()
    assert usual.schedule(False, 4, 1).codes == "none"
    assert usual.schedule(True, 4, 1000).codes == "together"
    assert usual.schedule(True, 4, 1001).codes == "blocks"
    assert Training(codes="none").schedule(True, 4, 1).codes == "none"


def test_quantizing_and_training_are_one_command(
    models, tmp_path, capsys, monkeypatch, tmp_path_factory
):
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    original, _ = models
    out = tmp_path / "out"
    options = ["--samples", "16", "--sequence-length", "32", "--q-bits", "3"]
    command = ["convert", str(original), str(out), "-q", "--distill", "--json"]
    assert main([*command, "--q-group-size", "32", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert min(result["losses"]) < result["losses"][0]
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["out"]


def test_a_killed_pipeline_keeps_its_quantized_model(models, tmp_path):
    original, _ = models
    options = Options(group_size=32, method=RTN, calibration=TEXT)

    def stop(what, *_):
        if what == "Training":
            raise Killed

    out, works = tmp_path / "out", []
    with pytest.raises(Killed):
        quantize_and_distill(str(original), out, options, SHORT, TEXT, stop)
    made = quantize_and_distill(
        str(original), out, options, SHORT, TEXT, lambda what, *_: works.append(what)
    )
    assert "Quantizing" not in works
    assert made.path == out


def test_the_original_is_hashed_once(models, tmp_path):
    original, _ = models
    options = Options(group_size=32, method=RTN, calibration=TEXT)
    passes = []

    def count(what, done, total):
        if what == "Reading the source" and done == total:
            passes.append(total)

    out = tmp_path / "out"
    quantize_and_distill(str(original), out, options, SHORT, TEXT, count)
    assert len(passes) == 2  # and the quantized model once


def test_the_divergence_is_that_of_the_likeliest_tokens():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(9), (2, 3))
    q = rng.dirichlet(np.ones(9), (2, 3))
    tokens = np.argsort(-p, -1)[..., :4]
    top_p = np.take_along_axis(p, tokens, -1)
    top_q = np.take_along_axis(q, tokens, -1)
    rest_p, rest_q = 1 - top_p.sum(-1), 1 - top_q.sum(-1)
    exact = (top_p * np.log(top_p / top_q)).sum(-1)
    exact += rest_p * np.log(rest_p / rest_q)
    logits = np.log(q) + rng.standard_normal((2, 3, 1))
    result = divergence(mx.array(logits), mx.array(np.log(top_p)), mx.array(tokens))
    # A dozen float32 operations on values of at most 10.
    np.testing.assert_allclose(np.array(result), exact, atol=12 * 10 * 2.0**-24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ORIGINAL", "OUT", "--reference", "ORIGINAL"], "must|required.*is none"),
        (["START", "OUT", "--reference", "nowhere/at/all"], "does not exist"),
        (["START", "OUT", "--reference", "ORIGINAL", "--steps", "0"], "at least 1"),
        (
            ["START", "OUT", "--reference", "ORIGINAL", "--samples", "1"],
            "two batches",
        ),
        (["START", "ORIGINAL", "--reference", "ORIGINAL"], "must not exist yet"),
    ],
)
def test_wrong_arguments_are_one_line(models, tmp_path, capsys, arguments, message):
    original, start = models
    names = {"ORIGINAL": original, "START": start, "OUT": tmp_path / "out"}
    words = [str(names.get(a, a)) for a in arguments]
    assert main(["distill", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("nibble: [distill]")
    assert len(error.splitlines()) == 1
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()

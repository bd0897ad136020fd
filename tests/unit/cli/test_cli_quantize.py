"""`nibble convert -q`, `eval` and `inspect`."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest

from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.evaluation.calibration_text import batches, encode, read_text
from mlx_nibble.evaluation.evaluate import evaluate
from mlx_nibble.lm import load_for_evaluation
from tests.support.commands import nibble
from tests.support.gguf_writer import tiny_llama

pytestmark = pytest.mark.slow

MEASURED = "sensitivity-model.layers.0.self_attn.json"
TEXT = "to be, or not to be: that is the question. " * 60


def answer(*arguments: str) -> dict:
    result = nibble(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quantize")
    (folder / "tiny.gguf").write_bytes(tiny_llama())
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def converted(home) -> dict:
    return answer(
        "convert", str(home / "tiny.gguf"), str(home / "q4"), "-q",
        "--q-group-size", "32", "--calibration", str(home / "text.txt"),
        "--samples", "4", "--sequence-length", "32",
    )  # fmt: skip


def test_the_result_is_a_folder_that_mlx_lm_loads(home, converted):
    model, tokenizer = mlx_lm.load(converted["path"])
    config = json.loads((home / "q4" / "config.json").read_text())
    assert config["quantization"]["bits"] == 4
    assert config["quantization"] == config["quantization_config"]
    logits = model(mx.array([tokenizer.encode("to be")]))
    assert mx.isfinite(logits).all()
    assert not (home / ".q4.nibble").exists()


def test_inspect_counts_the_bytes_of_the_file(home, converted):
    got = answer("inspect", converted["path"])
    assert got["nbytes"] == converted["nbytes"]
    assert got["parameters"] == converted["parameters"]
    assert got["weights"] + got["scales"] + got["biases"] == got["nbytes"]
    again = answer("inspect", converted["path"], "--what-if", "4:32")
    assert again["nbytes"] == got["nbytes"]
    wide = answer("inspect", converted["path"], "--what-if", "8:32")
    assert wide["weights"] - got["weights"] == got["parameters_of_matrices"] / 2
    text = nibble("inspect", converted["path"], "--layers", "--tensors").stdout
    places = [text.index(f"model.layers.{part}") for part in ("0 ", "1 ", "0.", "1.")]
    assert places == sorted(places) and "7 x 4-bit g32" in text
    assert "bits each" in text


def test_inspect_of_a_number_of_weights():
    rows = {
        row["format"]: row["weights"]
        for row in json.loads(nibble("inspect", "7B", "--json").stdout)
    }
    assert rows["fp32"] == 28e9
    assert rows["int8, groups of 64"] == 7e9
    assert rows["int4, groups of 64"] == 3.5e9


def test_eval_against_the_model_itself(home, converted):
    arguments = ["--text", str(home / "text.txt"), "--samples", "2"]
    arguments += ["--sequence-length", "32"]
    got = answer(
        "eval", converted["path"], "--reference", converted["path"], *arguments
    )
    assert got["tokens"] == 62
    assert got["comparison"]["kl"]["mean"] == 0
    assert got["comparison"]["agreement"]["mean"] == 1
    assert got["perplexity"] == got["reference_perplexity"]
    text = nibble("eval", converted["path"], *arguments).stdout
    assert "perplexity" in text and "±" in text


def test_eval_rounds_to_int8_as_decoding_does(home, converted):
    """Many rows at once may be rounded less than single ones."""
    text, path = home / "text.txt", converted["path"]
    arguments = ["--text", str(text), "--samples", "1", "--sequence-length", "64"]
    got = answer("eval", path, *arguments, "--activations", "int8")
    settings = Settings("int8", batch_invariant=True)
    model, tokenizer = load_for_evaluation(path, settings)
    tokens = batches(encode(tokenizer, read_text(str(text))), 64, 1)
    assert got["perplexity"]["mean"] == evaluate(model, tokens).perplexity.mean


def test_several_models_in_one_picture(home, converted):
    pytest.importorskip("matplotlib")
    arguments = ["--text", str(home / "text.txt"), "--samples", "2", "--json"]
    arguments += ["--sequence-length", "32", "--plot", str(home / "sizes.png")]
    same = converted["path"]
    result = nibble("eval", same, same, "--reference", same, *arguments)
    assert result.returncode == 0, result.stderr
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 2
    assert (home / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_sensitivity_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from mlx_nibble.pictures import losses, style

    drawn = losses.by_layer({"layers.0.q_proj": 0.1, "lm_head": 2.0})
    style.save(drawn, tmp_path / "a.svg")
    assert "</svg>" in (tmp_path / "a.svg").read_text()


def test_a_budget_of_bits_is_kept(home):
    picture = home / "sensitivity.svg"
    got = answer(
        "convert", str(home / "tiny.gguf"), str(home / "mixed"), "-q",
        "--method", "search", "--target-bpw", "5.5", "--q-group-size", "32",
        "--calibration", str(home / "text.txt"),
        "--samples", "2", "--sequence-length", "32", "--plot", str(picture),
    )  # fmt: skip
    drawn = picture.read_text()
    assert all(kind in drawn for kind in ("mlp.up_proj", "self_attn.o_proj", "layer"))
    config = json.loads((home / "mixed" / "config.json").read_text())["quantization"]
    own = [v for v in config.values() if isinstance(v, dict)]
    assert own, "all matrices got one format"
    counted = answer("inspect", got["path"])
    assert counted["bits_per_weight"] <= 5.5  # with norms, embedding and scales
    mlx_lm.load(got["path"])


@pytest.mark.parametrize(
    ("more", "finished"),
    [([], "progress.json"), (["--target-bpw", "5.5"], MEASURED)],
    ids=["quantizing", "measuring"],
)
def test_a_killed_conversion_goes_on_where_it_was(home, tmp_path, more, finished):
    """Kill after the first layer or block; a second run gives the same files."""

    def command(name: str) -> list[str]:
        return [
            "convert", str(home / "tiny.gguf"), str(tmp_path / name), "-q",
            "--q-group-size", "32", "--calibration", str(home / "text.txt"),
            "--samples", "80", "--sequence-length", "32", *more,
        ]  # fmt: skip

    killed = subprocess.Popen(
        [sys.executable, "-m", "mlx_nibble.cli", *command("killed")]
    )
    workspace = tmp_path / ".killed.nibble"
    while not (workspace / finished).exists():
        assert killed.poll() is None
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    first = workspace / finished
    if not more:
        first = workspace / "layer-00000.safetensors"
    made = first.stat().st_mtime_ns
    (workspace / "partial-layer-00001.safetensors").write_bytes(b"half")

    resumed = subprocess.Popen(
        [sys.executable, "-m", "mlx_nibble.cli", *command("killed")]
    )
    while first.exists() and resumed.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            assert first.stat().st_mtime_ns == made
        time.sleep(0.01)
    assert resumed.wait() == 0
    answer(*command("whole"))
    one, other = (
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("killed", "whole")
    )
    assert one == other
    assert not workspace.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "{home}/q4", "out"], "say -q"),
        (["convert", "{home}/q4", "{home}/q4", "-q"], "must not exist yet"),
        (["eval", "{home}/q4", "--text", "{home}/none"], "a text must be a file"),
        (["eval", "{home}/q4", "--plot", "a.png"], "--plot needs --reference"),
        (
            ["convert", "{home}/q4", "out", "-q", "--target-bpw", "2"],
            "the target must be at least",
        ),
        (["inspect", "{home}"], "a model folder must hold"),
        (["inspect", "{home}/q4", "--what-if", "x"], "--what-if must be"),
        (["inspect", "{home}/q4", "--what-if", "7"], "bits must be one of"),
    ],
)
def test_mistakes_are_told_in_one_line(home, converted, arguments, message):
    result = nibble(*[a.format(home=home) for a in arguments])
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path(".out.nibble").exists()

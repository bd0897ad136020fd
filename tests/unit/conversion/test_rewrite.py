"""Conversions that measure nothing give what mlx_lm.convert gives; model cards."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import ModelCard
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.convert import convert as stock

from mlx_nibble import lm
from mlx_nibble.cli import main
from mlx_nibble.conversion.rewrite import rewrite
from tests.support import gptq_folders, model_folders, tiny_models
from tests.support.gguf_writer import tiny_llama

SIZES = {"vocab_size": model_folders.VOCABULARY, "head_dim": 32}


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    model = tiny_models.build("llama", **SIZES)
    model.set_dtype(mx.bfloat16)
    config = tiny_models.config("llama", **SIZES)
    return model_folders.write(tmp_path_factory.mktemp("m") / "dense", model, config)


def tensors(folder: Path) -> dict[str, mx.array]:
    found = mx.load(str(folder / "model.safetensors"))
    assert isinstance(found, dict)
    return found


def quantization(folder: Path) -> dict | None:
    return json.loads((folder / "config.json").read_text()).get("quantization")


def assert_same(ours: Path, theirs: Path) -> None:
    a, b = tensors(ours), tensors(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert mx.array_equal(a[name], b[name]), name
    assert quantization(ours) == quantization(theirs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_another_type(dense, tmp_path, dtype):
    rewrite(str(dense), tmp_path / "ours", dtype)
    stock(str(dense), str(tmp_path / "theirs"), dtype=dtype)
    assert_same(tmp_path / "ours", tmp_path / "theirs")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["torch_dtype"] == dtype


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_modes_and_back(dense, tmp_path, mode, dtype):
    made = rewrite(str(dense), tmp_path / "ours", dtype, mode=mode)
    theirs = str(tmp_path / "theirs")
    stock(str(dense), theirs, quantize=True, q_mode=mode, dtype=dtype)
    assert_same(tmp_path / "ours", tmp_path / "theirs")
    assert dict(made.bits) == {8 if mode == "mxfp8" else 4: 22}
    assert made.nbytes == sum(a.nbytes for a in tensors(made.path).values())
    back = rewrite(str(made.path), tmp_path / "back", dequantize=True)
    stock(theirs, str(tmp_path / "their-back"), dequantize=True)
    assert_same(back.path, tmp_path / "their-back")
    assert quantization(back.path) is None and not back.bits
    assert made.parameters == back.parameters


def test_a_quantized_model_in_another_type_stays_quantized(dense, tmp_path):
    q = tmp_path / "q"
    assert main(["convert", str(dense), str(q), "-q", "--method", "rtn"]) == 0
    rewrite(str(q), tmp_path / "ours", "float16")
    stock(str(q), str(tmp_path / "theirs"), dtype="float16")
    assert_same(tmp_path / "ours", tmp_path / "theirs")


def test_a_type_that_a_model_keeps_is_kept(tmp_path):
    config = tiny_models.config("deepseek_v3", vocab_size=model_folders.VOCABULARY)
    model = tiny_models.build("deepseek_v3", vocab_size=model_folders.VOCABULARY)
    folder = model_folders.write(tmp_path / "m", model, config)
    rewrite(str(folder), tmp_path / "out", "bfloat16")
    kept = {k for k, v in tensors(tmp_path / "out").items() if v.dtype == mx.float32}
    assert kept and all("e_score_correction_bias" in name for name in kept)


def test_gguf_and_packed_folders_are_imported_first(tmp_path, rng):
    (tmp_path / "m.gguf").write_bytes(tiny_llama())
    made = rewrite(str(tmp_path / "m.gguf"), tmp_path / "dense", dequantize=True)
    assert {v.dtype for v in tensors(made.path).values()} == {mx.float16}
    packed = gptq_folders.write(tmp_path / "packed", gptq_folders.tensors("llama", rng))
    made = rewrite(str(packed), tmp_path / "packed-dense", dequantize=True)
    assert not made.bits


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_saved_has_the_types_of_the_source(tmp_path, method, dtype):
    model = tiny_models.build("llama", **SIZES)
    model.set_dtype(getattr(mx, dtype))
    config = tiny_models.config("llama", **SIZES)
    folder = model_folders.write(tmp_path / "m", model, config)
    (tmp_path / "text.txt").write_text("the hen and the pen " * 40)
    flags = ["--calibration", str(tmp_path / "text.txt"), "--sequence-length", "16"]
    command = ["convert", str(folder), str(tmp_path / "q"), "-q", *flags]
    assert main([*command, "--method", method]) == 0
    found = {v.dtype for v in tensors(tmp_path / "q").values()}
    assert found == {mx.uint32, getattr(mx, dtype)}


def test_infinite_weights_are_refused(dense, tmp_path):
    with mx.stream(mx.cpu):
        broken = tensors(dense)
        broken["model.norm.weight"] = broken["model.norm.weight"] * mx.inf
    copy = tmp_path / "m"
    model_folders.write_tokenizer(copy)
    (copy / "config.json").write_text((dense / "config.json").read_text())
    mx.save_safetensors(str(copy / "model.safetensors"), broken, {"format": "mlx"})
    with pytest.raises(ValueError, match="'model.norm.weight' has an infinity"):
        rewrite(str(copy), tmp_path / "out", "float16")
    assert not (tmp_path / "out").exists()


CARD = "---\nlicense: mit\nlanguage: de\ntags: [old]\nbase_model: a/b\n---\n# Old\n"


@pytest.mark.parametrize("way", ["-q", "--dtype", "gguf", "packed"])
def test_every_folder_has_a_card(way, dense, tmp_path, rng, monkeypatch):
    source, flags = tmp_path / "m", []
    if way == "gguf":
        source.write_bytes(tiny_llama())
    elif way == "packed":
        gptq_folders.write(source, gptq_folders.tensors("llama", rng))
    else:
        source = dense
        flags = ["-q", "--method", "rtn"] if way == "-q" else ["--dtype", "float16"]
    if source.is_dir():
        (source / "README.md").write_text(CARD)
    out = tmp_path / "out"
    assert main(["convert", str(source), str(out), *flags]) == 0
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "mlx" and "mlx" in card.data.tags
    if source.is_dir():
        assert card.data.license == "mit" and card.data.tags == ["old", "mlx"]
        assert card.data.base_model == "a/b" and "# Old" not in card.text
    sent = []

    class Hub:
        def create_repo(self, **_): ...
        def upload_large_folder(self, **what):
            sent.append(what)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)  # the one part that is not here
    mlx_lm_utils.upload_to_hub(str(out), "me/it")
    assert sent[0]["repo_id"] == "me/it"
    assert "me/it" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    "card", [b"\xff\xfe", b"---\n- [\n---\n", b"---\n&a [*a]\n---\n", b"", b"x" * 9]
)
def test_a_card_that_cannot_be_read_is_replaced(card, dense, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    for file in dense.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "README.md").write_bytes(card)
    rewrite(str(folder), tmp_path / "out", "float16")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.tags == ["mlx"]


def test_uploads_are_checked_before_any_work(dense, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    out = str(tmp_path / "out")
    command = ["convert", str(dense), out, "--dtype", "float16", "--upload-repo"]
    for repo, reason in (("me/it", "hf auth login"), ("a b/c", "must be OWNER/NAME")):
        assert main([*command, repo]) == 1
        assert reason in capsys.readouterr().err
    assert not Path(out).exists()
    monkeypatch.setenv("HF_TOKEN", "x")
    sent = []
    monkeypatch.setattr(lm, "upload", lambda *what: sent.append(what))
    assert main([*command, "me/it"]) == 0
    assert sent == [(Path(out).resolve(), "me/it")]


def test_quantizing_and_dequantizing_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "m", "-q", "-d"])
    assert "exclude each other" in capsys.readouterr().err

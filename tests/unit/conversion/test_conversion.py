"""`convert` and the imports: what they refuse, carry over, and continue."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble import lm
from mlx_nibble.cli.convert_options import METHODS
from mlx_nibble.conversion.convert import convert
from mlx_nibble.conversion.gguf_import import import_gguf
from mlx_nibble.conversion.options import Calibration, Options
from mlx_nibble.conversion.packed_import import import_packed
from mlx_nibble.io.checkpoint import read_checkpoint
from tests.support import gguf_writer, gptq_folders, model_folders, tiny_models

DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A model in float32, with a text beside it."""
    sizes = {"vocab_size": model_folders.VOCABULARY, "num_hidden_layers": 2}
    folder = tmp_path_factory.mktemp("source") / "model"
    model = tiny_models.build("llama", **sizes)
    model_folders.write(folder, model, tiny_models.config("llama", **sizes))
    (folder.parent / "text.txt").write_text("to be, or not to be. " * 40)
    return folder


@pytest.fixture
def source(stored, tmp_path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(stored, tmp_path / "source"))


def options(stored: Path, method: str = "rtn", **others) -> Options:
    text = Calibration(str(stored.parent / "text.txt"), 2, 32)
    return Options(group_size=32, method=METHODS[method], calibration=text, **others)


def weights(folder: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(folder / "model.safetensors")))


def change(folder: Path, **changed: mx.array | None) -> None:
    """Replace or remove tensors; a name's dots are written as two underscores."""
    tensors = weights(folder)
    for name, value in changed.items():
        path = name.replace("__", ".")
        if value is None:
            del tensors[path]
        else:
            tensors[path] = value
    mx.eval(tensors)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})


def spoilt(folder: Path, name: str, value: float) -> None:
    """Set one element of a tensor."""
    array = np.array(weights(folder)[name])
    array[(-1,) * array.ndim] = value
    change(folder, **{name.replace(".", "__"): mx.array(array)})


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files but the card, which names the folder."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    paths = [p for p in paths if p.name != "README.md"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def alone(out: Path) -> bool:
    """Tell whether nothing was left beside an output."""
    return not list(out.parent.glob(f".{out.name}.*"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_named(stored, source, tmp_path, method, value):
    spoilt(source, DOWN, value)
    with pytest.raises(ValueError, match=rf"must be finite but '{DOWN}' has"):
        convert(str(source), tmp_path / "out", options(stored, method))
    assert alone(tmp_path / "out")


def test_a_norm_that_is_no_number_is_named_before_a_measurement(stored, source):
    spoilt(source, NORM, -np.inf)
    with pytest.raises(ValueError, match=f"{NORM!r} has an infinity"):
        convert(str(source), source.parent / "out", options(stored, target_bpw=7))
    assert alone(source.parent / "out")


def test_a_weight_beyond_the_asked_type_is_named(stored, source, tmp_path):
    spoilt(source, DOWN, 65519.0)  # the last that float16 rounds to a number
    convert(str(source), tmp_path / "near", options(stored, dtype="float16"))
    spoilt(source, DOWN, -65520.0)
    with pytest.raises(ValueError, match=f"range of float16 but .* of '{DOWN}'"):
        convert(str(source), tmp_path / "out", options(stored, dtype="float16"))
    convert(str(source), tmp_path / "wide", options(stored, dtype="bfloat16"))


def test_scales_beyond_the_type_are_named(stored, source, tmp_path):
    """With one bit a scale is the distance of the two levels."""
    spread = mx.where(mx.arange(128)[None] % 2, 60000.0, -60000.0)
    change(source, **{DOWN.replace(".", "__"): mx.broadcast_to(spread, (64, 128))})
    one_bit = options(stored, dtype="float16", bits=1)
    with pytest.raises(ValueError, match=r"range of float16 but .*down_proj"):
        convert(str(source), tmp_path / "out", one_bit)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_are_fine(stored, source, tmp_path, method):
    tensors = {k: mx.zeros_like(v) for k, v in weights(source).items() if "proj" in k}
    tensors["model.embed_tokens.weight"] = mx.zeros((model_folders.VOCABULARY, 64))
    change(source, **{k.replace(".", "__"): v for k, v in tensors.items()})
    convert(str(source), tmp_path / "out", options(stored, method))
    down = DOWN.removesuffix(".weight")
    parts = [weights(tmp_path / "out")[f"{down}.{p}"] for p in ("scales", "biases")]
    words = weights(tmp_path / "out")[DOWN]
    assert not mx.dequantize(words, *parts, group_size=32, bits=4).any().item()


def test_a_missing_parameter_is_named(stored, source, tmp_path):
    change(source, **{DOWN.replace(".", "__"): None})
    with pytest.raises(ValueError, match=f"Missing 1 parameters: {DOWN}"):
        convert(str(source), tmp_path / "out", options(stored))
    assert alone(tmp_path / "out")


def test_a_tensor_that_the_model_has_not_is_named(stored, source, tmp_path):
    change(source, model__layers__0__self_attn__k_scale=mx.ones(1))
    with pytest.raises(ValueError, match=r"not in model: model.layers.0.*k_scale"):
        convert(str(source), tmp_path / "out", options(stored))


def test_a_tensor_of_another_shape_is_named(stored, source, tmp_path):
    change(source, **{NORM.replace(".", "__"): mx.ones(63)})
    with pytest.raises(ValueError, match=f"for parameter {NORM}"):
        convert(str(source), tmp_path / "out", options(stored))


def split(folder: Path) -> str:
    """Split a model into two shards and remove one; return its name."""
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves: list[dict[str, mx.array]] = [{}, {}]
    for name, value in weights(folder).items():
        halves["layers.1." in name][name] = value
    for name, half in zip(names, halves, strict=True):
        mx.save_safetensors(str(folder / name), half, {"format": "mlx"})
    (folder / "model.safetensors").unlink()
    places = {k: name for name, half in zip(names, halves, strict=True) for k in half}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    (folder / names[1]).unlink()
    return names[1]


def test_a_missing_shard_is_named(stored, source, tmp_path):
    missing = f"{split(source)!r} is missing"
    with pytest.raises(ValueError, match=missing):
        convert(str(source), tmp_path / "out", options(stored))
    with pytest.raises(ValueError, match=missing):
        read_checkpoint(source, "inspect")
    packed = gptq_folders.write(tmp_path / "gptq", packed_tensors())
    split(packed)
    with pytest.raises(ValueError, match=missing):
        import_packed(packed, tmp_path / "out")
    assert alone(tmp_path / "out")


def packed_tensors() -> dict[str, mx.array]:
    return gptq_folders.tensors("llama", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (NORM, mx.full(32, np.nan, mx.float16), "has a NaN"),
        (
            "model.layers.0.mlp.up_proj.scales",
            mx.full((1, 64), np.inf, mx.float16),
            "up_proj must have finite scales",
        ),
        (
            "model.layers.0.mlp.up_proj.scales",
            mx.full((1, 64), 2e4, mx.float16),  # its biases are 8 times as large
            "up_proj must have biases up to 65504 in float16",
        ),
        (
            "model.layers.0.self_attn.k_scale",
            mx.ones(1),
            "k_scale is a scale of the KV cache",
        ),
        ("model.layers.1.input_layernorm.weight", None, "Missing 1 parameters: model"),
        (NORM, mx.ones(33, mx.float16), f"for parameter {NORM}"),
    ],
)
def test_wrong_tensors_of_packed_folders_are_named(tmp_path, name, value, message):
    tensors = packed_tensors() | {name: value}
    folder = {k: v for k, v in tensors.items() if v is not None}
    gptq_folders.write(tmp_path / "gptq", folder)
    with pytest.raises(ValueError, match=message):
        import_packed(tmp_path / "gptq", tmp_path / "out")
    assert not (tmp_path / "out").exists() and alone(tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_packed_folder_in_another_type(tmp_path, dtype):
    gptq_folders.write(tmp_path / "gptq", packed_tensors())
    import_packed(tmp_path / "gptq", tmp_path / "same")
    import_packed(tmp_path / "gptq", tmp_path / "out", dtype=dtype)
    same, got = weights(tmp_path / "same"), weights(tmp_path / "out")
    kinds = {v.dtype for v in got.values()} - {mx.uint32}
    assert kinds == {getattr(mx, dtype)}
    for name, value in same.items():
        assert mx.array_equal(got[name], value.astype(got[name].dtype)), name


def test_values_beyond_the_asked_type_of_a_packed_folder(tmp_path):
    tensors = packed_tensors() | {NORM: mx.full(32, 1e6, mx.float32)}
    gptq_folders.write(tmp_path / "gptq", tensors)
    with pytest.raises(ValueError, match=f"range of float16 .* of '{NORM}' is 1e"):
        import_packed(tmp_path / "gptq", tmp_path / "out", dtype="float16")


def test_a_packed_folder_is_quantized_from_our_import(stored, tmp_path):
    gptq_folders.write(tmp_path / "gptq", packed_tensors())
    import_packed(tmp_path / "gptq", tmp_path / "imported")
    told: list[str] = []
    for name in ("gptq", "imported"):
        source, out = tmp_path / name, tmp_path / f"{name}-out"
        convert(str(source), out, options(stored, bits=8), tell=told.append)
        assert alone(out)
    (line,) = told
    assert line.startswith(f"Importing {tmp_path / 'gptq'}, whose rounding")
    assert files(tmp_path / "gptq-out") == files(tmp_path / "imported-out")


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_values_of_a_gguf_file_are_checked(tmp_path, value):
    tensors = gguf_writer.tiny_tensors()
    norm = np.full(64, value, np.float32)
    tensors["output_norm.weight"] = gguf_writer.plain(norm, "F32")
    metadata = gguf_writer.tiny_metadata()
    file = tmp_path / "in.gguf"
    file.write_bytes(gguf_writer.gguf(metadata, tensors))
    with pytest.raises(ValueError, match=r"'model.norm.weight'"):
        import_gguf(file, tmp_path / "out", dtype="float16")
    assert alone(tmp_path / "out")


CARRIED = {
    "tokenizer.model": b"\x00\xffpieces",
    "vocab.json": b"{}",
    "merges.txt": b"a b",
    "added_tokens.json": b"{}",
    "special_tokens_map.json": b'{"pad_token": "<pad>"}',
    "generation_config.json": b'{"temperature": 0.5}',
    "preprocessor_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "qwen.tiktoken": b"IQ== 0",
    "code.py": b"raise SystemExit",
}
LEFT = {"pytorch_model.bin": b"", "quantize_config.json": b"{}", "README.md": b""}


@pytest.mark.parametrize("kind", ["quantized", "packed"])
def test_files_beside_the_weights_are_carried_over(stored, source, tmp_path, kind):
    if kind == "packed":
        source = gptq_folders.write(tmp_path / "gptq", packed_tensors())
    for name, content in (CARRIED | LEFT).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    (source / "notes.txt").symlink_to("merges.txt")  # as in the Hub's cache
    if kind == "packed":
        import_packed(source, tmp_path / "out")
    else:
        convert(str(source), tmp_path / "out", options(stored))
    got = files(tmp_path / "out")
    assert CARRIED.items() <= got.items()
    assert not LEFT.keys() & got.keys()
    assert not (tmp_path / "out/notes.txt").is_symlink()
    assert got["tokenizer.json"] == (source / "tokenizer.json").read_bytes()


def test_special_tokens_keep_their_ids(stored, source, tmp_path):
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    special = {"id": 260, "content": "<|tool|>"}
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    special |= dict.fromkeys(flags, False) | {"special": True}
    tokenizer["added_tokens"].append(special)
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    convert(str(source), tmp_path / "out", options(stored))
    texts = ["to be", "<|tool|>to<|tool|>", "<|im_end|>"]
    before, after = (
        lm.load_tokenizer(folder, {"eos_token_id": 2})
        for folder in (source, tmp_path / "out")
    )
    assert [after.encode(t) for t in texts] == [before.encode(t) for t in texts]
    assert special["id"] in after.encode(texts[1])
    assert after.all_special_ids == before.all_special_ids
    assert after.eos_token_ids == before.eos_token_ids


class Killed(Exception):
    pass


def start(stored: Path, source: Path, out: Path, **others) -> None:
    """Convert, and stop after the first layer."""

    def stop(what: str, done: float, total: float) -> None:
        if what == "Quantizing" and done == 1:
            raise Killed

    with pytest.raises(Killed):
        convert(str(source), out, options(stored, "gptq", **others), stop)


def go_on(stored: Path, source: Path, out: Path, **others) -> tuple[list[str], bool]:
    """Convert; return what was told, and whether the first layer was new."""
    told, steps = [], []
    convert(
        str(source),
        out,
        options(stored, "gptq", **others),
        lambda what, done, total: steps.append((what, done)),
        told.append,
    )
    assert alone(out)
    return told, ("Quantizing", 0) in steps


def test_a_conversion_goes_on(stored, source, tmp_path):
    start(stored, source, tmp_path / "out")
    # Other files, other times and another path are no change.
    (source / "README.md").write_text("more words")
    os.utime(source / "model.safetensors")
    moved = source.rename(tmp_path / "moved")
    assert go_on(stored, moved, tmp_path / "out") == ([], False)
    go_on(stored, moved, tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("changed", ["source", "config", "options", "text", "damage"])
def test_another_conversion_starts_afresh_and_says_so(
    stored, source, tmp_path, changed
):
    start(stored, source, tmp_path / "out")
    others = {}
    if changed == "source":  # of the same size and time
        file = source / "model.safetensors"
        before = file.stat()
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_size == before.st_size
    elif changed == "config":
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    elif changed == "options":
        others = {"symmetric": True}
    elif changed == "text":
        stored = Path(shutil.copytree(stored, tmp_path / "elsewhere/model"))
        (stored.parent / "text.txt").write_text("another text. " * 60)
    else:
        (tmp_path / ".out.nibble/progress.json").write_text('{"finished": 7}')
    (told,), anew = go_on(stored, source, tmp_path / "out", **others)
    assert told.startswith("Starting afresh: ")
    assert anew
    word = {"config": "source", "damage": "is damaged"}.get(changed, changed)
    assert word in told
    go_on(stored, source, tmp_path / "whole", **others)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("same", [False, True])
def test_a_source_that_changes_meanwhile(stored, source, tmp_path, same):
    """Other bytes are an error; a new time of the same bytes is none."""

    def edit(what: str, done: float, total: float) -> None:
        if what == "Quantizing" and done == 1:
            if same:
                os.utime(source / "model.safetensors")
            else:
                (source / "config.json").write_text("{}")

    def run() -> None:
        convert(str(source), tmp_path / "out", options(stored), edit)

    if same:
        run()
    else:
        with pytest.raises(ValueError, match=r"config.json' has changed: start again"):
            run()
        assert not (tmp_path / "out").exists()


def test_an_output_inside_the_source(stored, source, tmp_path):
    """`nibble convert .` writes to ./mlx_model, as mlx-lm does."""
    before = files(source)
    with pytest.raises(ValueError, match="must not exist yet"):
        convert(str(source), source, options(stored))
    assert files(source) == before
    convert(str(source), source / "deep/er", options(stored))
    convert(str(source), tmp_path / "out", options(stored))
    assert files(source / "deep/er") == files(tmp_path / "out")
    shutil.rmtree(source / "deep")
    assert files(source) == before


def test_other_options_are_other_work(stored):
    """Each option is part of the fingerprint: a new one cannot be forgotten."""
    from mlx_nibble.conversion.convert import _settings

    usual = options(stored)
    for field, value in {"bits": 3, "symmetric": True, "dtype": "float16"}.items():
        other = replace(usual, **{field: value})
        assert _settings("a", usual, []) != _settings("a", other, [])

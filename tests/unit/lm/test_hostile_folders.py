"""Model folders of strangers: damaged files, pipes, and Python code."""

from __future__ import annotations

import json
import os
import shutil
import socket
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import mlx.nn as mlx_nn
import pytest
from mlx_lm import utils as mlx_lm_utils

from mlx_nibble import lm
from mlx_nibble.cli import main
from mlx_nibble.evaluation.inventory import read_inventory
from mlx_nibble.io.config import read_config
from mlx_nibble.lm.sizes import check_layers, checked_building
from tests.support import model_folders, tiny_models


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return model_folders.imported(tmp_path_factory.mktemp("whole") / "m")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "m"))


def change(folder: Path, **values) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key, value in values.items():
        if value is ...:
            del config[key]
        else:
            config[key] = value
    file.write_text(json.dumps(config))


SETTINGS = {"group_size": 32, "bits": 4}
DAMAGED = [
    ("hidden_size", "64"),
    ("hidden_size", 64.0),
    ("hidden_size", True),
    ("hidden_size", 10**30),
    ("num_hidden_layers", 10**6),
    ("num_attention_heads", 0),
    ("num_key_value_heads", [0]),
    ("intermediate_size", float("inf")),
    ("vocab_size", -1),
    ("eos_token_id", "</s>"),
    ("model_type", ["llama"]),
    ("model_type", "../llama"),
    ("architectures", {"a": 1}),
    ("text_config", None),
    ("text_config", {"hidden_size": -1}),
    ("num_experts", 10**9),
    ("quantization", {}),
    ("quantization", {"bits": 4}),
    ("quantization", SETTINGS | {"group_size": 0}),
    ("quantization", SETTINGS | {"bits": 7}),
    ("quantization", SETTINGS | {"bits": True}),
    ("quantization", SETTINGS | {"mode": "x"}),
    ("quantization", SETTINGS | {"mode": None}),
    ("quantization", SETTINGS | {"model.norm": {"group_size": 0, "bits": 4}}),
    ("quantization", SETTINGS | {"model.norm": {"mode": ["affine"]}}),
    ("quantization", SETTINGS | {"model.norm": 4}),
]


@pytest.mark.parametrize(("key", "value"), DAMAGED)
def test_a_wrong_value_is_named_by_whoever_reads_it_first(key, value, tmp_path):
    config = {**tiny_models.config("llama"), key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^\[load\] ") as raised:
        read_config(tmp_path, "load")
    assert repr(str(tmp_path / "config.json")) in str(raised.value)
    assert key in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"bits": 4}, "quant_method"),
        ({"quant_method": None}, "quant_method"),
        ({"quant_method": "gptq"}, "bits"),
        ({"quant_method": "awq", "bits": "4"}, "bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0.5}, "group_size"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "config_groups"),
    ],
)
def test_wrong_settings_of_other_tools_are_named(settings, key, tmp_path):
    config = {**tiny_models.config("llama"), "quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=key):
        read_config(tmp_path, "load")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model_type": "llama", "model_type": "qwen2"}',
        b'{"vocab_size": ' + b"9" * 5000 + b"}",
        b" " * (16 << 20) + b"{}",
        b"null",
    ],
    ids=["empty", "bytes", "bom", "deep", "deeper", "twice", "digits", "large", "null"],
)
def test_what_is_no_configuration_is_refused(data, tmp_path):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"^\[load\] .*config\.json"):
        read_config(tmp_path, "load")


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text"])
def test_configurations_of_real_models_pass(family, tmp_path):
    settings = {"group_size": 64, "bits": 4, "mode": "affine", "lm_head": False}
    settings |= {"model.embed_tokens": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
    more = {"head_dim": None, "time_step_limit": [0.0, float("inf")]}
    more |= {"eos_token_id": [1, 2], "bos_token_id": None, "architectures": None}
    config = {**tiny_models.config(family), **more, "quantization": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path, "load")["quantization"] == settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", ...),
        ("hidden_size", ...),
        ("vocab_size", ...),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", []),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"type": "linear", "factor": None}),
        ("tie_word_embeddings", "false"),
        ("model_type", "base"),
        ("model_type", "olmo"),  # which ends the process if a package is missing
        ("hidden_size", None),
        ("model_type", "unknown"),
    ],
)
def test_arguments_of_mlx_lms_class_are_checked(key, value, folder):
    change(folder, **{key: value})
    with pytest.raises(ValueError) as raised:
        lm.load(str(folder))
    assert "config.json" in str(raised.value)
    if value is not ... or key != "model_type":
        assert (
            key in str(raised.value)
            or str(value) in str(raised.value)
            or key == ("rope_scaling")
        )


@pytest.mark.parametrize("size", ["intermediate_size", "hidden_size"])
@pytest.mark.parametrize("value", [1, 2, 16, 33, 48, 80, 2**31 - 1])
@pytest.mark.parametrize("entry", [None, SETTINGS, {**SETTINGS, "mode": "nvfp4"}])
def test_a_format_that_mlx_cannot_have_ends_no_process(size, value, entry, folder):
    """MLX divides by the group size that mlx-lm infers from sizes and shapes."""
    change(folder, **{size: value})
    if entry is not None:
        own = {f"model.layers.0.mlp.{p}_proj": entry for p in ("up", "down")}
        change(folder, quantization=SETTINGS | own)
    with pytest.raises(ValueError, match=r"config\.json"):
        lm.load(str(folder))


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        ({"group_size": 32, "bits": 4}, True),
        ({"group_size": 64, "bits": 8, "mode": "affine"}, True),
        ({"group_size": 16, "bits": 4, "mode": "nvfp4"}, True),
        ({"mode": "mxfp8"}, True),
        ({}, True),
        ({"group_size": 0, "bits": 384}, False),
        ({"group_size": 128, "bits": 4}, False),
        ({"group_size": 32, "bits": 7}, False),
        ({"group_size": 0, "mode": "mxfp4"}, False),
        ({"group_size": 32, "bits": 4, "mode": "x"}, False),
        ({"group_size": 32, "bits": 4, "mode": ["affine"]}, False),
    ],
)
def test_each_format_is_checked_before_a_layer_is_quantized(settings, right):
    before = mlx_nn.quantize
    for asked in (settings, bool(settings.get("group_size"))):
        given = settings if asked is True else {}
        layer = mlx_nn.Sequential(mlx_nn.Linear(64, 32))
        with (
            nullcontext()
            if right or not asked
            else pytest.raises(ValueError, match="x"),
            checked_building((), "x"),
        ):
            mlx_nn.quantize(layer, **given, class_predicate=lambda *_, a=asked: a)
    assert mlx_nn.quantize is before


@pytest.mark.parametrize("count", [4, 4096])
def test_more_layers_than_the_folder_has_are_named(count, folder):
    """Each would be built, with 20 KB for each module, before a tensor is missed."""
    change(folder, num_hidden_layers=count)
    with pytest.raises(ValueError, match=f"'num_hidden_layers' .* {count}"):
        lm.load(str(folder))


def test_a_models_lists_of_layers_are_counted_together():
    names = [f"model.{part}.{i}.w" for part in ("layers", "more") for i in range(3)]
    for most, known in (
        (6, names),
        (8, [*names, "a.7.experts.9.w"]),
        (0, ["a", "b.1"]),
    ):
        for config in ({"n_layer": most}, {"text_config": {"num_layers": most}}):
            check_layers(config, known, "x")
        for key in ("n_layer", "num_layers", "num_hidden_layers"):
            for prefix, config in (
                ("", {key: most + 1}),
                ("text_config.", {"text_config": {key: most + 1}}),
            ):
                with pytest.raises(ValueError, match=f"'{prefix}{key}' in 'x'"):
                    check_layers(config, known, "x")
    check_layers({"num_layers": 5}, [], "x")  # weights that are not here yet


def test_modules_that_no_tensor_is_for_are_not_built():
    """Some families have a list or a text instead of a number of layers."""
    with pytest.raises(ValueError, match="at most 4112 modules, for 1 tensors"):
        with checked_building(["w"], "x"):
            [mlx_nn.Identity() for _ in range(10**6)]
    with checked_building([], "x"):
        [mlx_nn.Identity() for _ in range(5000)]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"model": 5}', b'{"added_tokens": [{"id": -1}]}'],
)
def test_a_damaged_tokenizer_is_a_value_error(content, folder):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises((ValueError, OSError)):
        lm.load(str(folder))


def header(text: str, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


ENTRY = '{"w": {"dtype": "F32", "shape": %s, "data_offsets": %s}}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        (1 << 62).to_bytes(8, "little") + b"{}",
        header("[]"),
        header('{"w": 5}'),
        header(ENTRY % ("[4]", "[0, 16]")),
        header(ENTRY % ("[4]", "[0, 8]"), bytes(16)),
        header(ENTRY % ("[-4]", "[0, 16]"), bytes(16)),
        header(ENTRY % ("[4294967297, 0]", "[0, 0]")),
        header(ENTRY % ("[4611686018427387904, 4]", "[0, 0]")),
        header(ENTRY % ("[true]", "[0, 4]"), bytes(16)),
        header((ENTRY % ("[4]", "[0, 16]")).replace("F32", "Q4"), bytes(16)),
        header((ENTRY % ("[4]", "[0, 16]")).replace('"F32"', "[]"), bytes(16)),
    ],
)
def test_damaged_safetensors_are_named_before_mlx_reads_them(data, folder):
    (folder / "model.safetensors").write_bytes(data)
    for read in (lambda: read_inventory(folder), lambda: lm.load(str(folder))):
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            read()


def test_an_inventory_of_odd_shapes_is_an_error(folder):
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    for shape in ((), (0,), (3, 1)):
        tensors = {"a.weight": mx.zeros((2, 8), mx.uint32), "a.scales": mx.zeros(shape)}
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
        with pytest.raises(ValueError, match="'a'"):
            read_inventory(folder)


@pytest.mark.parametrize("kind", ["pipe", "socket", "dangling", "loop", "device"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind, name, folder, capsys):
    path = folder / name
    path.unlink()
    sink = None
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            sink = socket.socket(socket.AF_UNIX)
            sink.bind(str(path))
        case "dangling":
            path.symlink_to("absent")
        case "loop":
            path.symlink_to(name)
        case "device":
            path.symlink_to("/dev/zero")
    commands = [["generate", "--model", str(folder)], ["convert", "-q", str(folder)]]
    commands += [["eval", str(folder)], ["inspect", str(folder)], ["tune", str(folder)]]
    for command in commands:
        if name == "tokenizer.json" and command[0] in ("inspect", "tune"):
            continue  # these read no tokenizer
        assert main(command) == 1
        message = capsys.readouterr().err
        assert message.startswith("nibble: [") and message.count("\n") == 1
    if sink is not None:
        sink.close()


def test_a_pipe_instead_of_a_gguf_or_a_run_is_refused(tmp_path, capsys):
    os.mkfifo(pipe := tmp_path / "m.gguf")
    for command in (["convert"], ["bench", "plot"], ["bench", "compare"]):
        out = str(tmp_path / "out.svg")
        assert main([*command, str(pipe), out]) == 1
        assert "regular file" in capsys.readouterr().err


def test_mlx_lm_is_its_own_afterwards(folder):
    names = ("load_model", "_load_tokenizer", "_download", "glob")
    before = [getattr(mlx_lm_utils, name) for name in names]
    lm.load(str(folder))
    assert [getattr(mlx_lm_utils, name) for name in names] == before


def test_a_huge_configuration_is_not_read(folder):
    with open(folder / "config.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match="at most"):
        read_config(folder, "load")


def test_a_configuration_of_a_million_lists_is_not_parsed(folder):
    """CPython 3.12 parses them, and takes longer for each one more."""
    deep = b"[" * 400 + b"]" * 400
    with open(folder / "config.json", "wb") as file:
        file.write(b'{"a": [' + b",".join([deep] * 2501) + b"]}")
    with pytest.raises(ValueError, match="at most 1000000 lists and objects"):
        read_config(folder, "load")

"""mlx-lm's saving, loading and converting, unpatched, with accelerated models."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.convert import convert

import mlx_nibble
from mlx_nibble import lm
from mlx_nibble.acceleration.decide import is_quantized
from mlx_nibble.lm.dtypes import in_stored_types
from tests.support import families, model_folders, tiny_models
from tests.support.arrays import to_numpy
from tests.support.tolerance import relative_rms

IDS = tiny_models.tokens(1, 20)[0]
WIDTHS = {"group_size": families.GROUP_SIZE, "bits": 4}


def arrays(model) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def assert_same_arrays(ours: dict[str, mx.array], theirs: dict[str, mx.array]) -> None:
    assert ours.keys() == theirs.keys()
    for name, a in ours.items():
        assert a.dtype == theirs[name].dtype and mx.array_equal(a, theirs[name]), name


def config_of(family: str) -> dict:
    heads = {} if family == "deepseek_v3" else {"head_dim": 32}
    return tiny_models.config(family, **heads)


@pytest.fixture(params=families.FAMILIES)
def family(request) -> str:
    return request.param


def test_saved_and_loaded_nothing_is_missing_and_nothing_more(family, tmp_path):
    model = families.ours(family)
    want = model(IDS)
    mlx_lm_utils.save_model(tmp_path, model)
    config = config_of(family) | {"quantization": dict(WIDTHS)}
    mlx_lm_utils.save_config(config, tmp_path / "config.json")

    stock = families.stock(family)
    assert_same_arrays(mx.load(str(tmp_path / "model.safetensors")), arrays(stock))
    loaded, _ = mlx_lm_utils.load_model(tmp_path)  # strict
    assert [type(m) for m in loaded.modules()] == [type(m) for m in stock.modules()]
    report = mlx_nibble.accelerate(loaded)
    assert report.swapped and not report.kept
    assert mx.array_equal(loaded(IDS), want)


def test_quantizing_what_is_quantized_leaves_it_alone(family):
    model = families.ours(family)
    kinds, before = [type(m) for m in model.modules()], arrays(model)
    want = model(IDS)
    config = config_of(family) | {"quantization": dict(WIDTHS)}
    model, _ = mlx_lm_utils.quantize_model(model, config, 64, 8)
    assert [type(m) for m in model.modules()] == kinds
    assert_same_arrays(arrays(model), before)
    assert mx.array_equal(model(IDS), want)


def test_quantized_after_it_was_accelerated_it_can_be_accelerated(family):
    """Quantize a dense model whose norms and attention are ours (on the CPU)."""

    def quantized(first: bool):
        model = tiny_models.build(family)
        if first:
            assert mlx_nibble.accelerate(model).routed
        config = tiny_models.config(family)
        model, config = mlx_lm_utils.quantize_model(model, config, 32, 4)
        report = mlx_nibble.accelerate(model)
        assert report.swapped and not report.kept
        return model, config

    (ours, our_config), (theirs, their_config) = quantized(True), quantized(False)
    assert our_config == their_config
    assert_same_arrays(arrays(ours), arrays(theirs))
    assert mx.array_equal(ours(IDS), theirs(IDS))


@pytest.mark.parametrize("undone", [False, True])
def test_dequantized_it_is_the_dense_model(undone):
    model, stock = families.stock("qwen3_moe"), families.stock("qwen3_moe")
    report = mlx_nibble.accelerate(model)
    if undone:
        report.undo()
    model, stock = (mlx_lm_utils.dequantize_model(m) for m in (model, stock))
    assert not any(is_quantized(m) for m in model.modules())
    assert_same_arrays(arrays(model), arrays(stock))
    assert relative_rms(to_numpy(model(IDS)), to_numpy(stock(IDS))) < 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return model_folders.imported(tmp_path_factory.mktemp("saving") / "tiny")


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_a_loaded_model_can_be_copied(folder, copied):
    """mlx-lm's dynamic_quant copies the model that it has loaded."""
    model, _ = lm.load(str(folder))
    again = copied(model)
    difference = mx.abs(again(IDS) - model(IDS)).max()
    assert difference < 1e-4 * mx.abs(model(IDS)).max()
    types = {k: v.dtype for k, v in in_stored_types(again).items()}
    assert types == {k: v.dtype for k, v in in_stored_types(model).items()}


def test_a_folder_that_mlx_lm_saves_is_the_one_it_was(folder, tmp_path):
    """Save the result of lm.load by mlx_lm.utils.save, and load it by mlx_lm.load."""
    model, tokenizer, config = lm.load(str(folder), return_config=True)
    want = model(IDS)
    mlx_lm_utils.save(
        tmp_path, folder, model, tokenizer, dict(config), donate_model=False
    )
    again, tokenizer = lm.load(str(tmp_path))
    assert mx.array_equal(again(IDS), want)
    assert tokenizer.encode("the hen")
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["quantization"] == config["quantization"]


def test_convert_quantizes_a_model_loaded_accelerated_as_one_that_is_not(
    family, tmp_path
):
    """Save a dense model whose norms and attention are ours (on the CPU)."""
    sizes = {"vocab_size": model_folders.VOCABULARY}
    dense = tiny_models.build(family, **sizes)
    config = tiny_models.config(family, **sizes)
    source = str(model_folders.write(tmp_path / "dense", dense, config))

    def converted(name: str) -> dict[str, mx.array]:
        out = str(tmp_path / name)
        convert(source, out, quantize=True, q_group_size=32, q_bits=4)
        return mx.load(str(tmp_path / name / "model.safetensors"))

    theirs = converted("theirs")
    with lm.accelerated_loading():
        ours = converted("ours")
    assert_same_arrays(ours, theirs)
    model, _ = lm.load(str(tmp_path / "ours"))
    stock, _ = mlx_lm_utils.load(str(tmp_path / "ours"))
    assert relative_rms(to_numpy(model(IDS)), to_numpy(stock(IDS))) < 1e-5


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"dequantize": True}])
def test_convert_of_models_loaded_accelerated_is_convert(folder, tmp_path, change):
    def converted(name: str) -> dict[str, mx.array]:
        convert(str(folder), str(tmp_path / name), **change)
        return mx.load(str(tmp_path / name / "model.safetensors"))

    theirs = converted("theirs")
    with lm.accelerated_loading():
        ours = converted("ours")
    assert_same_arrays(ours, theirs)

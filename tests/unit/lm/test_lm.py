"""mlx-lm's loading and generation, accelerated, on a tiny llama."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.generate import generate_step as mlx_lm_generate_step

from mlx_nibble import lm, nn
from mlx_nibble.bench import side_by_side
from mlx_nibble.evaluation.reference import llama_logits
from mlx_nibble.machine import tuned_table
from mlx_nibble.machine.tuned_table import LEAVE_TO_MLX, Choice
from mlx_nibble.tune import problems
from tests.support import model_folders
from tests.support.graph import node_names
from tests.support.tolerance import relative_rms

TOKENS = [5, 70, 101, 64, 3, 3, 200, 258]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return model_folders.imported(tmp_path_factory.mktemp("lm") / "tiny")


def test_load_is_mlx_lms_load_accelerated(folder):
    model, tokenizer, config = lm.load(str(folder), return_config=True)
    assert config["model_type"] == "llama"
    assert tokenizer.encode("the hen")
    attention = model.layers[0].self_attn
    assert type(attention.q_proj) is nn.QuantizedLinear
    assert type(model.model.embed_tokens) is nn.QuantizedEmbedding


def test_activations_are_single_on_the_cpu_and_scales_as_they_were(folder):
    model, _ = lm.load(str(folder))
    parameters = dict(tree_flatten(model.parameters()))
    assert parameters["model.layers.0.mlp.up_proj.scales"].dtype == mx.float16
    embedding = model.model.embed_tokens
    assert embedding.scales.dtype == mx.float16
    assert embedding(mx.array([1])).dtype == mx.float32
    assert parameters["model.norm.weight"].dtype == mx.float32
    assert model(mx.array([TOKENS])).dtype == mx.float32


def test_batch_invariance_reaches_every_row(folder):
    model, _ = lm.load(str(folder), batch_invariant=True)
    together = model(mx.array([TOKENS]))
    cache = lm.make_prompt_cache(model)
    for at, token in enumerate(TOKENS):
        alone = model(mx.array([[token]]), cache=cache)
        assert mx.array_equal(alone[0, 0], together[0, at])


def test_what_was_tuned_is_followed_unless_told_not_to(folder, tables):
    layer = lm.load(str(folder))[0].layers[0].mlp.down_proj
    N, K = layer.weight.shape[0], layer.scales.shape[1] * layer.group_size
    (problem,) = problems.of_shapes(
        [(N, K)], (1,), "float32", layer.bits, layer.group_size, None
    )
    symmetric = {"scale_dtype": "float16", "symmetric": True}
    keys = [
        replace(problem.key, scale_dtype="float16"),
        replace(problem.key, **symmetric),
    ]
    tuned_table.save(dict.fromkeys(keys, Choice(LEAVE_TO_MLX, 1.2)))
    products = {}
    for tuned in (True, False):
        model, _ = lm.load(str(folder), tuned=tuned)
        layer = model.layers[0].mlp.down_proj
        products[tuned] = node_names(layer(mx.ones((1, K))))["QuantizedMatmul"]
    assert products == {True: 1, False: 0}


def test_probabilities_are_ours_and_mlx_lm_is_not_patched(folder):
    model, _ = lm.load(str(folder))
    ours = list(lm.generate_step(mx.array(TOKENS), model, max_tokens=4))
    theirs = list(mlx_lm_generate_step(mx.array(TOKENS), model, max_tokens=4))
    assert lm.generate_step.__code__ is mlx_lm_generate_step.__code__
    assert mlx_lm_generate_step.__globals__["mx"] is mx
    for (token, logprobs), (stock_token, stock_logprobs) in zip(
        ours, theirs, strict=True
    ):
        assert token == stock_token
        assert mx.allclose(logprobs, stock_logprobs, rtol=1e-6, atol=1e-6)


def test_mlx_lm_is_itself_again_afterwards(folder):
    before = mlx_lm_utils.load_model
    lm.load(str(folder))
    with pytest.raises((OSError, ValueError)):
        lm.load(str(folder / "absent"))
    assert mlx_lm_utils.load_model is before
    model, _ = mlx_lm.load(str(folder))
    assert type(model.layers[0].mlp.up_proj).__module__.startswith("mlx.nn")


def test_logits_are_as_near_the_reference_as_stock(folder):
    exact = llama_logits(folder, TOKENS)
    assert exact is not None
    ours, stock = (
        relative_rms(side_by_side.logits(load(str(folder))[0], TOKENS), exact)
        for load in (lm.load, lm.load_stock)
    )
    # Both in float32; the orders of summation differ.
    assert 0 < ours < 4 * stock


def test_stock_is_left_alone_but_for_its_activations(folder):
    model, _ = lm.load_stock(str(folder))
    assert type(model.layers[0].mlp.up_proj).__module__.startswith("mlx.nn")
    assert model.layers[0].mlp.up_proj.scales.dtype == mx.float32


def test_reference_declines_what_it_does_not_evaluate(folder, tmp_path):
    config = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"llama"', '"qwen3"', 1))
    assert llama_logits(tmp_path, TOKENS) is None


def test_interleaved_runs_take_turns_and_agree(folder):
    models = {"stock": lm.load_stock(str(folder))[0], "ours": lm.load(str(folder))[0]}
    turns = []
    runs = side_by_side.generate_in_turns(
        models,
        TOKENS,
        4,
        2,
        lambda name, done, total: turns.append((name, total - done)),
    )
    # The orders of a schedule take turns, too: ABBA.
    names = ["stock", "ours", "stock", "ours", "ours", "stock"]
    assert [name for name, _ in turns] == names
    assert all(left == np.inf for _, left in turns[:2])
    assert all(0 < left < np.inf for _, left in turns[2:])
    assert {name: len(results) for name, results in runs.items()} == {
        "stock": 2,
        "ours": 2,
    }
    for run in runs["ours"] + runs["stock"]:
        assert run.tokens == runs["ours"][0].tokens and len(run.tokens) == 4
        assert run.prompt_rate > 0 and run.decode_rate > 0
        assert run.working_bytes > 0

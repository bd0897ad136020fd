"""Counted bytes, against the bytes that MLX and mlx-lm really hold."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as mlx_nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_nibble import footprint, lm

TINY = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 12,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 320,
}
LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


def load(folder: Path, config: dict):
    (folder / "config.json").write_text(json.dumps(config))
    return lm.load_lazily(folder)[0]


def held(model: mlx_nn.Module) -> int:
    return sum(a.nbytes for a in dict(tree_flatten(model.parameters())).values())


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_what_if_is_what_quantizing_gives(tmp_path, bits, group_size):
    model = load(tmp_path, TINY)
    model.set_dtype(mx.float16)
    before = footprint.parts(model)
    assert footprint.total_bytes(before) == held(model)
    predicted = [footprint.requantized(part, bits, group_size) for part in before]
    mlx_nn.quantize(
        model,
        group_size,
        bits,
        class_predicate=lambda path, module: (
            hasattr(module, "to_quantized")
            and module.weight.shape[-1] % group_size == 0
        ),
    )
    assert footprint.parts(model) == predicted
    assert footprint.total_bytes(predicted) == held(model)


@pytest.mark.parametrize("context", [1, 256, 300])
def test_the_cache_is_mlx_lms(tmp_path, context):
    model = load(tmp_path, TINY)
    cache = make_prompt_cache(model)
    model(mx.zeros((1, context), mx.int32), cache=cache)
    allocated = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache)
    assert footprint.cache_bytes(TINY, context, 4) == allocated


def test_the_table_of_7b(tmp_path):
    """28 GB in fp32, 7 GB in int8, 3.5 GB in int4, of 7 G weights; here 6.74 G."""
    found = footprint.parts(load(tmp_path, LLAMA_7B))
    matrices = 6_738_415_616 - 65 * 4096  # all but the norms
    norms = 65 * 4096 * 4
    assert footprint.total_bytes(found) == 6_738_415_616 * 4

    def what_if(bits: int, group: int | None) -> tuple[int, int]:
        other = [footprint.requantized(part, bits, group) for part in found]
        values = sum(part.value_bytes for part in other)
        return values - norms, sum(part.scale_bytes for part in other)

    assert what_if(32, None) == (4 * matrices, 0)
    assert what_if(8, 64) == (matrices, matrices // 16)
    assert what_if(4, 64) == (matrices // 2, matrices // 16)
    assert what_if(4, 32) == (matrices // 2, matrices // 8)
    assert footprint.smallest_mac(4 * matrices) == 64
    assert footprint.smallest_mac(60 << 30) is None


def test_unknown_caches_are_not_guessed():
    assert footprint.cache_bytes({"model_type": "mamba"}, 100, 2) is None
    assert footprint.activation_bytes({"model_type": "mamba"}, 100, 2) is None


@pytest.mark.parametrize("config", [{}, {"model_type": "llama"}, {"model_type": "no"}])
def test_a_config_of_no_model_is_one_clear_error(tmp_path, config):
    with pytest.raises(ValueError, match=r"config.json must describe|not supported"):
        load(tmp_path, config)

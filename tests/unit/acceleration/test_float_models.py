"""Whole models in the modes of floats: every quantized layer on our kernels."""

import importlib

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

import mlx_nibble
from mlx_nibble.acceleration.decide import is_quantized
from mlx_nibble.formats import FLOAT_MODES
from tests.support import tiny_models
from tests.support.perturbed import assert_as_close, perturb

IDS = tiny_models.tokens(1, 40)[0]
GPT_OSS = {
    "num_hidden_layers": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 16,
    "rope_theta": 10000,
    "rope_scaling": None,
    "layer_types": ["sliding_attention", "full_attention"],
}


def llama(mode: str) -> nn.Module:
    """Return a llama whose layers all have this mode."""
    model = tiny_models.build("llama", head_dim=32)
    nn.quantize(model, mode=mode)
    return model


def gpt_oss() -> nn.Module:
    """Return a gpt-oss as it ships: experts in mxfp4, and sinks in its attention."""
    module = importlib.import_module("mlx_lm.models.gpt_oss")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs(**GPT_OSS))
    for layer in model.layers:
        layer.self_attn.sinks = mx.random.normal(layer.self_attn.sinks.shape)

    def form(path: str, module: nn.Module):
        if isinstance(module, SwitchLinear):
            return {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        return hasattr(module, "to_quantized") and "router" not in path

    nn.quantize(model, 32, 8, class_predicate=form)
    return model


def experts_with_global_scales() -> nn.Module:
    """Return experts in nvfp4 that have a scale of their own each."""
    mx.random.seed(0)
    return SwitchLinear(64, 48, 4, bias=True).to_quantized(
        16, 4, "nvfp4", global_scale=True
    )


MODELS = {mode: lambda mode=mode: llama(mode) for mode in FLOAT_MODES}
MODELS["gpt_oss"] = gpt_oss


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_every_quantized_layer_is_ours(name, dtype):
    def made() -> nn.Module:
        model = MODELS[name]()
        model.set_dtype(dtype)
        mx.eval(model.parameters())
        return model

    model = made()
    arrays = {path: mx.array(a) for path, a in tree_flatten(model.parameters())}
    stock, moved = model(IDS), perturb(made())(IDS)
    mx.eval(arrays, stock, moved)
    report = mlx_nibble.accelerate(model)
    quantized = [path for path, m in model.named_modules() if is_quantized(m)]
    assert not report.kept and [s.path for s in report.swapped] == quantized
    ours = model(IDS)
    assert ours.dtype == stock.dtype
    # Our kernels for CUDA have no float32, and may round as MLX's do.
    assert mx.cuda.is_available() or not mx.array_equal(ours, stock)
    if dtype == mx.float32:
        assert_as_close({"logits": ours}, {"logits": stock}, {"logits": moved})
    report.undo()
    after = dict(tree_flatten(model.parameters()))
    assert all(mx.array_equal(after[path], a) for path, a in arrays.items())
    assert mx.array_equal(model(IDS), stock)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_the_same_alone_and_in_a_prompt(name):
    model = MODELS[name]()
    mlx_nibble.accelerate(model)
    cache = make_prompt_cache(model)
    model(IDS[:, :20], cache=cache)
    one = model(IDS[:, 20:21], cache=cache)[0, -1]
    whole = model(IDS[:, :21], cache=make_prompt_cache(model))[0, -1]
    assert mx.allclose(one, whole, rtol=1e-4, atol=1e-4)


def test_experts_with_global_scales():
    """MLX's CPU build has no product of such experts."""
    layer = experts_with_global_scales()
    assert isinstance(layer, QuantizedSwitchLinear)
    x = mx.random.normal((5, 1, 1, 64))
    indices = mx.array([[0, 3], [1, 1], [2, 0], [3, 2], [0, 1]])
    each = [
        mx.dequantize(
            layer.weight[e],
            layer.scales[e],
            mode="nvfp4",
            global_scale=layer.global_scale[e],
            dtype=mx.float32,
        )
        for e in range(4)
    ]
    w_hat = mx.stack(each)[indices].swapaxes(-1, -2)
    exact = x @ w_hat + mx.expand_dims(layer.bias[indices], -2)
    report = mlx_nibble.accelerate(layer)
    assert report.swapped and not report.kept
    assert mx.allclose(layer(x, indices), exact, rtol=1e-5, atol=1e-5)

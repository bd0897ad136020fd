"""Calibration of model families that differ from a llama, each in its own way.

`make families` does the same for all families and methods.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_nibble.conversion.quantizer import quantize_model
from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.layerwise.hessians import Collector, token_factors
from mlx_nibble.layerwise.intercept import intercepted
from mlx_nibble.layerwise.matrices import matrices
from mlx_nibble.layerwise.replay import Replay
from mlx_nibble.layerwise.stream import arrays, copied, steps
from mlx_nibble.layerwise.trace import layers, trace
from mlx_nibble.quantize.method import Method
from tests.support import family_models
from tests.support.arrays import to_numpy
from tests.unit.conversion.test_quantize_model import plan

pytestmark = pytest.mark.slow

FAMILIES = (
    "deepseek_v3",  # latent attention: products for each head
    "gemma4_text",  # layers return keys and values, and reuse those of others
    "hunyuan",  # layers share keys and values
    "gemma3n",  # arrays change in place, lists of projections
    "iquestloopcoder",  # layers run twice, and are called module by module
    "mamba2",  # a state-space model
    "qwen3_5",  # the text part of a vision model, linear attention
    "dbrx",  # experts in a list, some of which get no token
    "plamo",  # decoder inside a decoder
    "afm7",  # fused projections that return lists, two lists of layers
    "kimi_k3",  # a norm over earlier layers' results, weights read directly
)
"""A family of each special structure."""
# A whole conversion takes seconds: each method, and each kind of matrix, once. The
# nightly workflow converts all families with all methods: `make families`.
CONVERTED = {
    "deepseek_v3": "awq+gptq",
    "mamba2": "target",
    "qwen3_5": "awq",
    "dbrx": "gptq",
}


@pytest.fixture(autouse=True)
def without_compilation():
    """Keep MLX from running a C++ compiler for each fused expression."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_the_forward_pass(family):
    """Every part's result equals that of the plain forward pass, bit for bit."""
    model, tokens = family_models.build(family), family_models.tokens(2, 24)
    traced = trace(model, tokens[0])
    expected = []
    for batch in tokens:
        results: list = []

        def record(original, *args, results=results, **kwargs):
            result = original(*args, **kwargs)
            mx.eval(arrays(result))
            results.append(copied(result))
            return result

        with intercepted([(part, record) for part in traced.parts.values()]):
            mx.eval(model(batch))
        expected.append(results)
    for index, step in enumerate(steps(model, traced, tokens)):
        for i in (0, 1, 0):
            got, want = arrays(step.run(i)), arrays(expected[i][index])
            for y, x in zip(got, want, strict=True):
                np.testing.assert_array_equal(to_numpy(y), to_numpy(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_repeated_from_the_middle_is_the_same(family):
    model, (tokens,) = family_models.build(family), family_models.tokens(1, 24)
    traced = trace(model, tokens)
    replay, expected = Replay(model, traced, tokens), to_numpy(model(tokens))
    for calls in (0, len(traced.calls) // 2, len(traced.calls)):
        np.testing.assert_array_equal(to_numpy(replay.after(calls)), expected)


@pytest.mark.parametrize(("family", "method"), CONVERTED.items())
def test_a_converted_model_loads_and_is_near(family, method):
    outcome = family_models.convert_tiny(family, method)
    assert outcome.right and not outcome.refused, outcome
    quantized, swapped = outcome.layers
    assert swapped == quantized
    # Float32 sums in another order, at most 40 of them in a row.
    assert outcome.accelerated < 1e-4


def test_products_for_each_head_have_their_own_hessians():
    model, tokens = family_models.build("deepseek_v3"), family_models.tokens(1, 24)
    step = next(steps(model, trace(model, tokens[0]), tokens))
    attention = step.part.self_attn
    collector = Collector({"v": attention.unembed_out, "k": attention.embed_q})
    with collector.watching():
        step.run(0)
        collector.observe()
    found = collector.result()
    heads, _, width = attention.unembed_out.weight.shape
    assert found["v"].hessian.shape == (heads, width, width)
    # A prompt multiplies by the other matrix's transpose: its columns have no inputs.
    assert "k" not in found


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(32, 32)]

    def __call__(self, tokens: mx.array) -> mx.array:
        raise RuntimeError("No Metal back-end.\nMore.")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Failing(),
            r"must run on text but Failing failed .*back-end\.\): use --method",
        ),
        (nn.Sequential(nn.Embedding(9, 32)).layers[0], "in a list but Embedding calls"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_with_the_way_out(model, message):
    with pytest.raises(ValueError, match=message) as error:
        trace(model, mx.array([[1, 2]]))
    assert "\n" not in str(error.value)
    assert "--method rtn" in str(error.value)


def test_layers_are_found_without_a_pass():
    assert list(layers(Failing())) == ["layers.0"]


@pytest.mark.parametrize("method", [Method(sweeps=1), Method(awq=True, gptq=False)])
def test_zeros_are_fine_and_nan_names_the_layer(method, tmp_path):
    def run(name: str, value: float) -> dict[str, mx.array]:
        model = family_models.build("llama")
        for layer in model.layers[1:]:
            layer.self_attn.v_proj.weight *= value
        tokens = family_models.tokens(2, 24)
        workspace = Workspace(tmp_path / name, {})
        return quantize_model(model, plan(model), method, tokens, workspace)

    for value in run("zeros", 0.0).values():
        assert np.isfinite(to_numpy(value)).all()
    with pytest.raises(ValueError, match=r"results of model\.layers\.1 must be finite"):
        run("nan", float("nan"))


def test_tokens_of_zeros_do_not_count():
    rows = np.zeros((4, 32), np.float32)
    np.testing.assert_array_equal(token_factors(rows), np.ones((4, 1)))
    rows[0] = 1
    np.testing.assert_array_equal(token_factors(rows)[0], [1])


def test_a_model_says_what_is_not_quantized():
    paths = {m.path: m for m in matrices(family_models.build("kimi_k3"))}
    assert not any(path.endswith("res_proj") for path in paths)
    gates = [m for path, m in paths.items() if path.endswith("mlp.gate")]
    assert gates and all(m.own == {"group_size": 64, "bits": 8} for m in gates)

"""AWQ on whole layers: the folds of each family, and that outputs do not change."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_nibble.conversion.awq_layer import fold_scales
from mlx_nibble.conversion.fold import folds
from mlx_nibble.conversion.quantizer import quantize_model
from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.evaluation.evaluate import evaluate
from mlx_nibble.formats import Format
from mlx_nibble.layerwise.stream import steps
from mlx_nibble.layerwise.trace import trace
from mlx_nibble.quantize.method import Method
from tests.support import tiny_models
from tests.support.arrays import to_numpy
from tests.unit.conversion.test_quantize_model import load_back, plan

pytestmark = pytest.mark.slow

FORM = Format(4, 32, "float32")
AWQ = Method(awq=True, gptq=False, sweeps=0)
ROUNDED = Method("affine", gptq=False, sweeps=0)

ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
MLP = {"mlp.gate_proj", "mlp.up_proj"}
GATED = {
    frozenset(ATTENTION),
    frozenset(MLP),
    frozenset({"self_attn.o_proj"}),
    frozenset({"mlp.down_proj"}),
}


def experts(block: str) -> set[frozenset[str]]:
    return {
        frozenset(ATTENTION),
        frozenset({"self_attn.o_proj"}),
        frozenset(
            {
                f"{block}.gate",
                f"{block}.switch_mlp.gate_proj",
                f"{block}.switch_mlp.up_proj",
            }
        ),
        frozenset({f"{block}.switch_mlp.down_proj"}),
    }


EXPECTED = {
    # One norm before attention and MLP; GELU lies between the MLP's matrices.
    "phi": {frozenset({*ATTENTION, "mlp.fc1"}), frozenset({"self_attn.dense"})},
    "phi3": {
        frozenset({"self_attn.qkv_proj"}),
        frozenset({"self_attn.o_proj"}),
        frozenset({"mlp.gate_up_proj"}),
        frozenset({"mlp.down_proj"}),
    },
    "mixtral": experts("block_sparse_moe"),
    "qwen3_moe": experts("mlp"),
}


def first_layer(family: str):
    model, tokens = tiny_models.build(family), tiny_models.tokens(2)
    step = next(steps(model, trace(model, tokens[0]), tokens))
    return step.part, step.run


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_input_of_a_family_is_found_and_scaling_it_changes_nothing(family, rng):
    layer, run = first_layer(family)
    expected = to_numpy(run(1))
    found = list(folds(layer, lambda: run(0)))
    assert {frozenset(f.consumers) for f in found} == EXPECTED.get(family, GATED)
    for fold in found:
        s = np.exp(rng.normal(size=len(fold.index)))
        fold.apply(fold.tie(s).astype(np.float32))
    # Sums of at most 160 products, rescaled by factors of a few: float32 rounding.
    allowed = 1e-4 * abs(expected).max()
    np.testing.assert_allclose(to_numpy(run(1)), expected, atol=allowed)


class Odd(nn.Module):
    """A layer that also returns its norm's output, so that a fold would change it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(32)
        self.up_proj = nn.Linear(32, 32)
        self.down_proj = nn.Linear(32, 32)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.norm(x)
        return y + self.down_proj(mx.tanh(self.up_proj(y)))


def test_what_is_not_exact_is_not_folded():
    layer, x = Odd(), mx.random.normal((4, 32))
    before = to_numpy(layer(x))
    assert list(folds(layer, lambda: layer(x))) == []
    np.testing.assert_array_equal(to_numpy(layer(x)), before)


def test_searching_scales_changes_no_output():
    layer, run = first_layer("llama")
    expected = to_numpy(run(0))
    weight = to_numpy(layer.self_attn.q_proj.weight)
    formats = {p: FORM for fold in GATED for p in fold}
    fold_scales(layer, formats, run, 2)
    assert (to_numpy(layer.self_attn.q_proj.weight) != weight).any()
    allowed = 1e-4 * abs(expected).max()
    np.testing.assert_allclose(to_numpy(run(0)), expected, atol=allowed)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi", "qwen3_moe"])
def test_awq_loses_less_than_rounding(family, tmp_path):
    tokens, reference = tiny_models.tokens(), tiny_models.build(family)
    test = tiny_models.tokens(4, seed=9)
    coarse = Format(3, 32, "float32")
    kl = {}
    for name, method, form in (
        ("rounded", ROUNDED, FORM),
        ("coarse", ROUNDED, coarse),
        ("awq", AWQ, FORM),
        ("awq+gptq", Method(awq=True), FORM),
    ):
        formats = plan(reference, form)
        model = tiny_models.build(family)
        workspace = Workspace(tmp_path / name, {})
        parameters = quantize_model(model, formats, method, tokens, workspace)
        loaded = load_back(family, parameters, formats)
        kl[name] = evaluate(loaded, test, reference).comparison.kl.mean
    assert kl["awq"] < kl["rounded"]
    # On 192 tokens of random models GPTQ's advantage is within the noise. The gain of
    # one more bit is not.
    assert kl["awq+gptq"] < kl["coarse"]

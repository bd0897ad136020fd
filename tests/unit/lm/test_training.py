"""mlx-lm's training, unpatched, on accelerated models: LoRA, DoRA, fuse, DWQ.

The trained weights are compared with those of the same model on stock MLX. They may
differ as much as when MLX's own products are perturbed by their rounding errors
(tests/support/perturbed.py). Plain gradient descent keeps a small difference of
gradients small.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers, remove_lora_layers

import mlx_nibble
from mlx_nibble import nn as ours_nn
from tests.support import families, tiny_models
from tests.support.perturbed import assert_as_close, perturb

IDS = tiny_models.tokens(1, 40)[0]
DATA = [(a[0].tolist(), 0) for a in tiny_models.tokens(8, 32)]
ADAPTED = {"self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj"}
ADAPTED |= {"self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"}
EXPERTS = {"mlp.switch_mlp.up_proj", "mlp.switch_mlp.down_proj"}


@pytest.fixture(scope="module", autouse=True)
def eagerly():
    """Disable compilation: compiling a step takes far longer than running it."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(params=families.FAMILIES)
def models(request):
    """Return a family's model: stock, accelerated and perturbed."""
    return three(request.param)


def three(family):
    return (
        families.stock(family),
        families.ours(family),
        perturb(families.stock(family)),
    )


def fine_tune(model, keys, folder, dora=False, **options):
    mx.random.seed(3)
    np.random.seed(3)  # seed of mlx-lm's order of batches
    model.freeze()
    config = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, 2, config, use_dora=dora)
    arguments = TrainingArgs(
        batch_size=4,
        iters=2,
        max_seq_length=64,
        adapter_file=str(folder / "adapters.safetensors"),
        **options,
    )
    train(model, optimizers.SGD(1e-3), DATA, args=arguments)
    return dict(tree_flatten(model.trainable_parameters()))


def fuse(model):
    """Fuse the adapters as mlx_lm.fuse does."""
    fused = [(n, m.fuse()) for n, m in model.named_modules() if hasattr(m, "fuse")]
    assert fused
    model.update_modules(tree_unflatten(fused))
    return model


def assert_logits_as_close(models):
    stock, ours, moved = ({"logits": model(IDS)} for model in models)
    assert_as_close(ours, stock, moved)


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_learn_the_same_and_fuse(models, dora, tmp_path):
    keys = ADAPTED if dora else ADAPTED | EXPERTS
    stock, ours, moved = (fine_tune(model, keys, tmp_path, dora) for model in models)
    assert_as_close(ours, stock, moved)
    assert all(mx.abs(a).max() > 0 for n, a in ours.items() if "lora_b" in n)
    assert_logits_as_close(models)
    stock, ours, moved = (fuse(model) for model in models)
    # A fused layer is one of MLX's again, and can be accelerated again.
    perturb(moved)
    assert_logits_as_close(models)
    again = mlx_nibble.accelerate(ours)
    assert again.swapped and not again.kept
    assert_logits_as_close(models)


def test_gradient_checkpoints(tmp_path):
    learned = []
    for model in three("llama"):
        kind = type(model.layers[0])
        call = kind.__call__
        try:
            learned.append(fine_tune(model, ADAPTED, tmp_path, grad_checkpoint=True))
        finally:
            kind.__call__ = call  # mlx-lm changes the class
    stock, ours, moved = learned
    assert_as_close(ours, stock, moved)


def test_adapters_come_off():
    model = families.ours("llama")
    before = model(IDS)
    model.freeze()
    config = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    linear_to_lora_layers(model, 2, config)
    remove_lora_layers(model)
    assert mx.array_equal(model(IDS), before)
    assert isinstance(model.layers[-1].mlp.up_proj, ours_nn.QuantizedLinear)


def test_undo_reaches_a_layer_inside_an_adapter():
    model = families.stock("llama")
    report = mlx_nibble.accelerate(model)
    config = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    linear_to_lora_layers(model, 2, config)
    layer = model.layers[-1].mlp.up_proj.linear
    assert isinstance(layer, ours_nn.QuantizedLinear)
    report.undo()
    assert type(layer) is nn.QuantizedLinear


@pytest.mark.parametrize("family", families.FAMILIES)
def test_distilled_scales_and_biases(family):
    """Compute DWQ's gradients of every scale and bias, experts included."""
    models = three(family)
    teacher = families.stock("llama", bits=8)
    for model in models:
        mx.random.seed(3)
        dwq_quantize(
            model,
            lambda batch, index, split: teacher(batch),
            optimizers.SGD(1e-3),
            DATA,
            DATA[:4],
            batch_size=4,
            max_seq_length=64,
            seed=1,
            dtype=mx.float32,
        )
    stock, ours, moved = (
        dict(tree_flatten(model.trainable_parameters())) for model in models
    )
    assert len(stock) > 40
    assert_as_close(ours, stock, moved)
    untrained = dict(tree_flatten(families.stock(family).parameters()))
    moved = {n for n in ours if not mx.array_equal(ours[n], untrained[n])}
    assert len(moved) > 0.9 * len(ours)
    experts = {n for n in ours if "switch_mlp" in n}
    assert experts <= moved

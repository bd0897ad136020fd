"""mlx-lm's own quantized layers, each in a model: accelerated, compared, undone."""

from __future__ import annotations

import ast
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx.utils import tree_flatten

import mlx_nibble
from mlx_nibble.acceleration.decide import is_quantized
from tests.support import families, tiny_models
from tests.support.perturbed import assert_as_close, perturb
from tests.support.tolerance import on_cuda

PRODUCTS = {"quantized_matmul", "gather_qmm"}
IDS = tiny_models.tokens(1, 40)[0]


def afm7() -> nn.Module:
    """Return afm7: joint queries, keys and values, and layers that reuse keys."""
    from mlx_lm.models.afm7 import Model, ModelArgs

    mx.random.seed(0)
    model = Model(ModelArgs("afm7", 160, 64, 4, 2, 4, 2, 3))
    # FusedLinear.to_quantized() takes no mode.
    nn.quantize(
        model,
        class_predicate=lambda path, module: (
            {"group_size": 32, "bits": 4} if hasattr(module, "to_quantized") else False
        ),
    )
    return model


def prism_hadamard_qwen35() -> nn.Module:
    """Return a model whose layers are packed and rotate their input."""
    from mlx_lm.models import prism_hadamard_qwen35, qwen3_5

    config = {
        "model_type": "qwen3_5",
        "hidden_size": 512,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 160,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "full_attention_interval": 2,
    }
    mx.random.seed(0)
    dense = qwen3_5.Model(qwen3_5.ModelArgs.from_dict(config)).language_model
    weights = {
        path: module.weight
        for path, module in dense.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding))
        and module.weight.shape[-1] % 128 == 0
    }
    model = prism_hadamard_qwen35.Model(
        prism_hadamard_qwen35.ModelArgs(
            model_type="prism_hadamard_qwen35",
            text_config=config,
            schema_version=1,
            tensor_namespace="mlx-lm-text",
            quantization={"bits": 2, "group_size": 128, "mode": "affine"},
            modules=[
                {
                    "path": path,
                    "embedding": "embed_tokens" in path,
                    "dtype": "float16",
                    "block": 512 if weight.shape[-1] % 512 == 0 else 0,
                }
                for path, weight in weights.items()
            ],
        )
    )
    for path, module in model.language_model.named_modules():
        if path in weights:
            codes = mx.quantize(weights[path].astype(mx.float16), 128, 2)
            module.weight, module.scales, module.biases = codes
            if "signs" in module:
                module.signs = mx.where(mx.random.bernoulli(shape=(512,)), 1.0, -1.0)
    return model


# Keyed by their quantized layers beside QuantizedLinear and QuantizedEmbedding.
MODELS = {
    "afm7.FusedQuantizedLinear": afm7,
    "prism_hadamard_qwen35.HadamardQuantizedLinear": prism_hadamard_qwen35,
    "prism_hadamard_qwen35.HadamardQuantizedEmbedding": prism_hadamard_qwen35,
    "mla.QuantizedMultiLinear": lambda: families.stock("deepseek_v3"),
    "switch_layers.QuantizedSwitchLinear": lambda: families.stock("qwen3_moe"),
}


def own_layers() -> set[str]:
    """Return mlx-lm's classes that call a product, or derive from one that does."""
    found: set[str] = set()
    bases = {"QuantizedLinear", "QuantizedEmbedding", "QQLinear"}
    parsed = {
        path.stem: ast.parse(path.read_text())
        for path in (Path(mlx_lm.__file__).parent / "models").glob("*.py")
        if any(name in path.read_text() for name in PRODUCTS | bases)
    }
    classes = [
        (module, node)
        for module, tree in parsed.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    while True:
        known = len(bases)
        for module, node in classes:
            named = {getattr(n, "attr", getattr(n, "id", None)) for n in ast.walk(node)}
            parents = {getattr(n, "attr", getattr(n, "id", None)) for n in node.bases}
            if named & PRODUCTS or parents & bases:
                found.add(f"{module}.{node.name}")
                bases.add(node.name)
        if len(bases) == known:
            return found


def test_each_of_mlx_lms_own_layers_is_in_a_model_here():
    assert own_layers() == set(MODELS)


@pytest.mark.parametrize("layer", MODELS)
def test_a_model_of_these_layers(layer):
    model = MODELS[layer]()
    mx.eval(model.parameters())
    kinds = [type(m) for m in model.modules()]
    arrays = dict(tree_flatten(model.parameters()))
    stock = model(IDS)
    try:
        mx.eval(stock)
    except RuntimeError as error:
        if on_cuda():
            pytest.skip(f"MLX's own model fails on CUDA: {error}")
        raise
    moved = perturb(MODELS[layer]())(IDS)
    mx.eval(moved)

    report = mlx_nibble.accelerate(model)
    quantized = [path for path, m in model.named_modules() if is_quantized(m)]
    assert not report.kept and [s.path for s in report.swapped] == quantized
    assert layer.split(".")[1] in {s.original.__name__ for s in report.swapped}
    ours = model(IDS)
    assert ours.dtype == stock.dtype
    # Activations are float32 here, and our kernels for CUDA have none of these.
    assert mx.cuda.is_available() or not mx.array_equal(ours, stock)
    assert_as_close({"logits": ours}, {"logits": stock}, {"logits": moved})

    report.undo()
    assert [type(m) for m in model.modules()] == kinds
    after = dict(tree_flatten(model.parameters()))
    assert after.keys() == arrays.keys()
    assert all(mx.array_equal(after[name], arrays[name]) for name in arrays)
    assert mx.array_equal(model(IDS), stock)

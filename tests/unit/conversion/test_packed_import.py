"""A GPTQ folder, with and without act-order, keeps its outputs as an MLX folder."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mlx_nibble.conversion.packed_experts import stack_experts
from mlx_nibble.conversion.packed_import import import_packed, is_packed
from mlx_nibble.formats import Quantized
from tests.support import packers, tiny_models
from tests.support.arrays import to_numpy


def gptq_matrix(
    shape: tuple[int, int], act_order: bool, rng
) -> tuple[dict[str, mx.array], np.ndarray]:
    """Return tensors of a matrix in GPTQ's layout, and the dequantized weights."""
    rows, inputs = shape
    groups = inputs // 32
    codes = rng.integers(0, 16, (rows, inputs))
    scales = rng.uniform(0.01, 0.02, (rows, groups)).astype(np.float16)
    g_idx = np.arange(inputs) // 32
    if act_order:
        g_idx = rng.permutation(g_idx)
    parts = packers.gptq(codes, scales, np.full((rows, groups), 8), 4, "gptq", g_idx)
    parts = {name: mx.array(part) for name, part in parts.items()}
    return parts, scales.astype(np.float32)[:, g_idx] * (codes - 8)


def gptq_folder(folder, family: str, act_order: bool, rng) -> dict[str, np.ndarray]:
    """Write a tiny model in GPTQ's layout; return the dequantized weights."""
    model = tiny_models.build(family)
    stored, exact = {}, {}

    def store(prefix: str, shape: tuple[int, int]) -> np.ndarray:
        parts, weight = gptq_matrix(shape, act_order, rng)
        stored.update({f"{prefix}.{name}": part for name, part in parts.items()})
        return weight

    for path, value in tree_flatten(model.parameters()):
        prefix = path.removesuffix(".weight")
        if not path.endswith("_proj.weight"):
            stored[path] = value.astype(mx.float16)
            exact[path] = to_numpy(stored[path])
        elif value.ndim == 3:
            names = [
                prefix.replace("switch_mlp", f"experts.{i}") for i in range(len(value))
            ]
            exact[path] = np.stack([store(n, value.shape[1:]) for n in names])
        else:
            exact[path] = store(prefix, value.shape)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    config = tiny_models.config(family) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return exact


MIXTURES = {
    "mixtral": ("w1", "w2", "w3"),
    "qwen2_moe": ("gate_proj", "down_proj", "up_proj"),
    "deepseek_v3": ("gate_proj", "down_proj", "up_proj"),
}


@pytest.mark.parametrize("tool", ["gptq", "awq"])
@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_of_experts(tool, family, rng, tmp_path):
    """The tools store experts one by one, by the names of the original model."""
    model = tiny_models.build(family)
    stored, exact = {}, {}
    gate, down, up = MIXTURES[family]
    names = {"gate_proj": gate, "down_proj": down, "up_proj": up}

    def store(prefix: str, shape: tuple[int, int]) -> np.ndarray:
        if tool == "gptq":
            parts, weight = gptq_matrix(shape, False, rng)
        else:
            of_groups = (shape[0], shape[1] // 32)
            codes, zeros = (rng.integers(0, 16, n) for n in (shape, of_groups))
            scales = rng.uniform(0.01, 0.02, of_groups).astype(np.float16)
            parts = packers.awq(codes, scales, zeros)
            wide = scales.astype(np.float64).repeat(32, 1)
            weight = wide * (codes - zeros.repeat(32, 1))
        stored.update({f"{prefix}.{k}": mx.array(v) for k, v in parts.items()})
        return weight

    for path, value in tree_flatten(model.parameters()):
        prefix, _, name = path.removesuffix(".weight").rpartition(".")
        if ".switch_mlp." in path:
            block = prefix.removesuffix(".switch_mlp")
            each = [f"{block}.experts.{i}.{names[name]}" for i in range(len(value))]
            exact[path] = np.stack([store(n, value.shape[1:]) for n in each])
        elif name.endswith("_proj") and path.endswith(".weight"):
            exact[path] = store(f"{prefix}.{name}", value.shape)
        else:
            stored[path] = value.astype(mx.float16)
            exact[path] = to_numpy(stored[path])
    folder = tmp_path / tool
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    settings = {"quant_method": tool, "bits": 4, "group_size": 32}
    config = tiny_models.config(family) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    import_packed(folder, tmp_path / "mlx", dtype="float32")
    made, _ = load_model(tmp_path / "mlx")
    for path, module in made.named_modules():
        if "scales" in module:
            got = mx.dequantize(
                module.weight, module.scales, module.biases, 32, module.bits
            )
            np.testing.assert_allclose(
                to_numpy(got), exact[f"{path}.weight"], rtol=0, atol=1e-7
            )
    reference = tiny_models.build(family)
    reference.load_weights([(k, mx.array(v)) for k, v in exact.items()])
    made.set_dtype(mx.float32)
    reference.set_dtype(mx.float32)
    (tokens,) = tiny_models.tokens(1)
    got, expected = to_numpy(made(tokens)), to_numpy(reference(tokens))
    assert abs(got - expected).max() <= 1e-4 * abs(expected).max()


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_folder(family, act_order, rng, tmp_path):
    exact = gptq_folder(tmp_path / "gptq", family, act_order, rng)
    assert is_packed(tmp_path / "gptq")
    report = import_packed(tmp_path / "gptq", tmp_path / "mlx")
    assert report.bits == ({4: 3, 8: 18} if act_order else {4: 21})
    # Down projections of three layers, of four experts each.
    down, others = (3, 18) if family == "llama" else (12, 36)
    expected = (down, others) if act_order else (0, 0)
    assert (report.permuted, report.rounded_again) == expected

    reference = tiny_models.build(family)
    reference.load_weights([(k, mx.array(v)) for k, v in exact.items()])
    model, _ = load_model(tmp_path / "mlx")
    model.set_dtype(mx.float32)
    (tokens,) = tiny_models.tokens(1)
    got, expected = to_numpy(model(tokens)), to_numpy(reference(tokens))
    # A second rounding to 8 bits in groups of 32 changes a weight by 0.3 %.
    allowed = 0.03 if act_order else 1e-4
    assert abs(got - expected).max() <= allowed * abs(expected).max()


def test_experts_must_be_complete(rng, tmp_path):
    gptq_folder(tmp_path / "gptq", "qwen3_moe", False, rng)
    file = tmp_path / "gptq" / "model.safetensors"
    tensors = mx.load(str(file))
    left = {k: v for k, v in tensors.items() if ".experts.1.up_proj." not in k}
    mx.save_safetensors(str(file), left)
    with pytest.raises(ValueError, match="must be numbered from 0"):
        import_packed(tmp_path / "gptq", tmp_path / "mlx")


def test_other_folders_are_not_packed(tmp_path):
    assert not is_packed(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not is_packed(tmp_path)
    for settings in (
        {"quant_method": "aqlm"},
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        {"group_size": 64, "bits": 4},  # MLX's own
    ):
        config = {"model_type": "llama", "quantization_config": settings}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert not is_packed(tmp_path)


def test_values_are_exact_in_float32(rng, tmp_path):
    exact = gptq_folder(tmp_path / "gptq", "llama", False, rng)
    import_packed(tmp_path / "gptq", tmp_path / "mlx", dtype="float32")
    model, _ = load_model(tmp_path / "mlx")
    for path, module in model.named_modules():
        if path in exact:
            got = mx.dequantize(
                module.weight,
                module.scales,
                module.biases,
                module.group_size,
                module.bits,
            )
            assert got.dtype == mx.float32
            np.testing.assert_array_equal(to_numpy(got), exact[path])


STRANGERS = {
    "self_attn.k_scale": "a scale of the KV cache",
    "self_attn.k_proj.input_scale": "a scale of activations",
    "mlp.down_proj.hadamard_K": "a rotation",
    "mlp.down_proj.weight_scale_inv": "a part of a weight in another format",
    "mlp.down_proj.extra": "belongs to a packed matrix",
}


@pytest.mark.parametrize(("name", "what"), STRANGERS.items())
def test_tensors_without_a_place_are_refused_by_name(name, what, rng, tmp_path):
    gptq_folder(tmp_path / "gptq", "llama", False, rng)
    file = tmp_path / "gptq" / "model.safetensors"
    tensors = mx.load(str(file)) | {f"model.layers.0.{name}": mx.ones(1)}
    mx.save_safetensors(str(file), tensors)
    with pytest.raises(ValueError, match=f"{name} (is )?{what}"):
        import_packed(tmp_path / "gptq", tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()


def test_experts_of_two_widths_get_the_larger(rng):
    def expert(bits, groups):
        codes = rng.integers(0, 1 << bits, (8, 128)).astype(np.uint8)
        scales = rng.normal(size=(8, groups)).astype(np.float32)
        return Quantized(codes, scales, -scales, bits)

    experts = [expert(4, 1), expert(8, 4), expert(2, 2)]
    made, factors = stack_experts(
        {f"a.experts.{i}.w1": q for i, q in enumerate(experts)}
    )
    (stacked,) = made.values()
    assert isinstance(stacked, Quantized) and not factors
    assert (stacked.bits, stacked.group_size) == (8, 32)
    expected = np.stack([q.dequantize() for q in experts])
    np.testing.assert_array_equal(stacked.dequantize(), expected)

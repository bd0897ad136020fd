"""Folders of floats, tables and HQQ keep their values, or lose what the report says."""

from __future__ import annotations

import inspect as source_of
import json
import pkgutil
from pathlib import Path

import mlx.core as mx
import mlx_lm.models
import numpy as np
import pytest
from mlx_lm.utils import MODEL_REMAPPING, load_model

from mlx_nibble import accelerate
from mlx_nibble.conversion.packed_import import import_packed, is_packed
from mlx_nibble.io.packing import MODELS_WITH_FP8
from tests.support import packed_folders, tiny_models
from tests.support.packed_folders import KINDS

# A product and its sum in float32, and a factor of nvfp4 that MLX divides again.
UNIT = 2.0**-22
# The largest relative error of a matrix in its nearest form.
LOSSES = {"fp8": 0.01, "nf4": 0.03}


def dense(module, dtype=mx.float32) -> np.ndarray:
    """Return the weights of a module, as MLX dequantizes them."""
    if "scales" not in module:
        return np.array(module.weight.astype(mx.float32))
    form = (module.group_size, module.bits, module.mode)
    biases, factors = module.get("biases"), module.get("global_scale")
    if factors is None:
        wide = mx.dequantize(module.weight, module.scales, biases, *form, dtype=dtype)
        return np.array(wide)
    parts = zip(module.weight, module.scales, factors, strict=True)
    return np.stack(
        [np.array(mx.dequantize(w, s, None, *form, g, dtype)) for w, s, g in parts]
    )


def off(model, exact) -> dict[str, float]:
    """Return the relative error of each matrix's values, root mean square."""
    errors = {}
    for path, module in model.named_modules():
        if path.endswith("_proj"):
            want = exact[f"{path}.weight"]
            lost = dense(module) - want
            errors[path] = np.sqrt(np.square(lost).sum() / np.square(want).sum())
    return errors


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_keeps_its_values(kind, family, rng, tmp_path):
    exact = packed_folders.write(tmp_path / "packed", kind, family, rng)
    assert is_packed(tmp_path / "packed")
    report = import_packed(tmp_path / "packed", tmp_path / "mlx", dtype="float32")
    model, config = load_model(tmp_path / "mlx")
    assert "quantization" in config
    errors = off(model, exact)
    for path, error in errors.items():
        # MLX has a factor for each expert, and none for other matrices.
        lossy = kind == "nvfp4" and "switch_mlp" not in path
        assert error <= (0.03 if lossy else LOSSES.get(kind, UNIT)), path
    if kind in LOSSES or kind == "nvfp4":
        assert report.errors and max(report.errors.values()) <= 0.03
    else:
        assert not report.errors
    assert bool(report.dropped) == (kind[:5] in ("nvfp4", "model"))

    reference = tiny_models.build(family)
    reference.load_weights([(k, mx.array(v, mx.float32)) for k, v in exact.items()])
    model.set_dtype(mx.float32)
    accelerate(model)  # MLX's CPU has no product with a factor
    (tokens,) = tiny_models.tokens(1)
    got, expected = np.array(model(tokens)), np.array(reference(tokens))
    allowed = 0.2 if report.errors else 1e-3
    assert abs(got - expected).max() <= allowed * abs(expected).max()


@pytest.mark.parametrize("kind", ["nvfp4", "fp8", "nf4"])
def test_values_are_kept_on_demand(kind, rng, tmp_path):
    exact = packed_folders.write(tmp_path / "packed", kind, "qwen3_moe", rng)
    folders = (tmp_path / "packed", tmp_path / "mlx")
    report = import_packed(*folders, dtype="float32", keep="values")
    model, _ = load_model(tmp_path / "mlx")
    assert not report.errors and max(off(model, exact).values()) <= UNIT


def test_the_type_is_that_of_the_plain_tensors(rng, tmp_path):
    packed_folders.write(tmp_path / "packed", "fp8", "llama", rng)
    import_packed(tmp_path / "packed", tmp_path / "mlx")
    model, _ = load_model(tmp_path / "mlx")
    assert model.layers[0].mlp.up_proj.scales.dtype == mx.bfloat16


def test_modelopt_with_settings_of_its_own_file(rng, tmp_path):
    exact = packed_folders.write(tmp_path / "packed", "modelopt", "llama", rng)
    file = tmp_path / "packed" / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]
    file.write_text(json.dumps(config))
    own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (tmp_path / "packed" / "hf_quant_config.json").write_text(json.dumps(own))
    import_packed(tmp_path / "packed", tmp_path / "mlx")
    model, _ = load_model(tmp_path / "mlx")
    assert max(off(model, exact).values()) <= UNIT


def test_the_models_that_read_fp8_are_those_of_mlx_lm():
    folder = Path(source_of.getfile(mlx_lm.models)).parent
    names = [module.name for module in pkgutil.iter_modules([str(folder)])]
    texts = {name: (folder / f"{name}.py").read_text() for name in names}
    # Ministral 3 knows the scales, but does not decode the codes.
    read = {n for n, t in texts.items() if "_scale_inv" in t} - {"ministral3"}
    read.add("deepseek_v41")  # "its ue8m0 scale in MLX's quantized layout"
    others = {name for name, of in MODEL_REMAPPING.items() if of in read}
    assert sorted(read | others) == sorted(MODELS_WITH_FP8)


def replaced(parts, name, value):
    """Return tensors of which one is another; None removes it."""
    changed = parts | {name: value}
    return {k: v for k, v in changed.items() if v is not None}


HOSTILE = [
    ("nvfp4", "weight_packed", np.zeros((64, 32), np.int8)),
    ("nvfp4", "weight_packed", np.zeros((64, 9), np.uint8)),
    ("nvfp4", "weight_scale", np.full((64, 4), 0x7F, np.uint8)),
    ("nvfp4", "weight_scale", np.zeros((64, 3), np.uint8)),
    ("nvfp4", "weight_scale", None),
    ("nvfp4", "weight_global_scale", np.zeros(1, np.float32)),
    ("nvfp4", "weight_global_scale", np.full(1, np.nan, np.float32)),
    ("nvfp4", "weight_global_scale", np.ones(2, np.float32)),
    ("mxfp4", "weight_scale", np.full((64, 2), 255, np.uint8)),
    ("modelopt", "weight_scale_2", None),
    ("modelopt", "weight_scale_2", np.float32(np.inf)),
    ("fp8", "weight", np.full((64, 64), 0xFF, np.uint8)),
    ("fp8", "weight", np.zeros((64, 64), np.float16)),
    ("fp8", "weight_scale_inv", np.full((2, 2), np.inf, np.float32)),
    ("fp8", "weight_scale_inv", np.ones((3, 2), np.float32)),
    ("fp8", "weight_scale", np.ones((2, 2), np.float32)),
    ("nf4", "weight", np.zeros(7, np.uint8)),
    ("nf4", "weight.absmax", np.ones(3, np.float32)),
    ("nf4", "weight.absmax", np.full(64, np.inf, np.float32)),
    ("nf4", "weight.quant_map", np.ones(15, np.float32)),
    ("nf4", "weight.quant_map", np.full(16, np.nan, np.float32)),
    ("nf4", "weight.quant_state.bitsandbytes__nf4", np.zeros(9, np.uint8)),
    (
        "nf4",
        "weight.quant_state.bitsandbytes__nf4",
        np.frombuffer(b'{"shape": [1000000, 1000000], "blocksize": 64}', np.uint8),
    ),
    (
        "nf4",
        "weight.quant_state.bitsandbytes__nf4",
        np.frombuffer(b'{"shape": [64, 64], "blocksize": 0}', np.uint8),
    ),
    ("int8", "weight", np.zeros((64, 64), np.uint8)),
    ("int8", "SCB", np.full(64, np.nan, np.float32)),
    ("int8", "SCB", np.ones(63, np.float32)),
    ("int8", "weight_format", np.array([2], np.uint8)),
    ("hqq", "packing", np.frombuffer(b"9bit_u8", np.uint8)),
    ("hqq", "shape", np.array([1 << 40, 1 << 40])),
    ("hqq", "shape", np.array([0, 64])),
    ("hqq", "group_size", np.array(0, np.int32)),
    ("hqq", "group_size", np.array(-32, np.int32)),
    ("hqq", "axis", np.array(2, np.int32)),
    ("hqq", "nbits", np.array(99, np.int32)),
    ("hqq", "nbits", np.array(3, np.int32)),
    ("hqq", "quant_zero", np.array(1, np.uint8)),
    ("hqq", "zero", np.full((128, 1), np.inf, np.float16)),
    ("hqq", "zero", np.ones((3, 1), np.float16)),
    ("hqq", "W_q", np.zeros((64, 31), np.uint8)),
]


@pytest.mark.parametrize(("kind", "name", "value"), HOSTILE)
def test_malformed_matrices_are_refused(kind, name, value, rng, tmp_path):
    pack, settings = KINDS[kind]
    parts, _ = pack((64, 64), rng)
    path = "model.layers.0.mlp.up_proj"
    stored = {
        f"{path}.{k}": mx.array(v) for k, v in replaced(parts, name, value).items()
    }
    mx.save_safetensors(str(tmp_path / "model.safetensors"), stored)
    config = tiny_models.config("llama") | {"quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^\[import\] ") as caught:
        import_packed(tmp_path, tmp_path / "out")
    line = str(caught.value)
    assert "up_proj" in line and "\n" not in line and len(line) < 400
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("alone", [True, False])
def test_a_stack_of_experts_in_8_bits_is_named(alone, rng, tmp_path):
    path = "model.layers.0.mlp.experts.gate_up_proj"
    parts, _ = packed_folders.fp8((64, 64), rng)
    stored = {path: mx.array(np.stack([parts["weight"]] * 2))}
    stored[f"{path}_scale_inv"] = mx.array(np.stack([parts["weight_scale_inv"]] * 2))
    if not alone:
        own = "model.layers.0.self_attn.q_proj"
        stored |= {f"{own}.{name}": mx.array(part) for name, part in parts.items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), stored)
    settings = {"quantization_config": KINDS["fp8"][1]}
    config = json.dumps(tiny_models.config("llama") | settings)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        ValueError, match="gate_up_proj is a stack of experts in 8 bits"
    ):
        import_packed(tmp_path, tmp_path / "out")


SETTINGS = [
    {"quant_method": "auto-round", "bits": 4, "group_size": 32},
    {"quant_method": "auto-round", "packing_format": "auto_round:fp8_static"},
    {"quant_method": "auto-round", "packing_format": ["auto_round"]},
    {"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor"},
    {"quant_method": "fp8", "fmt": "e5m2"},
    {"quant_method": "fp8", "weight_block_size": [128]},
    {"quant_method": "fp8", "weight_block_size": [0, 128]},
    {"quant_method": "fp8", "weight_block_size": "128"},
    {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
    {"quant_method": "modelopt"},
    {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32},
    {"quant_method": "bitsandbytes"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": True},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_malformed_settings_are_refused(settings, rng, tmp_path):
    packed_folders.write(tmp_path / "packed", "fp8", "llama", rng)
    file = tmp_path / "packed" / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": settings}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^\[import\] "):
        import_packed(tmp_path / "packed", tmp_path / "out")

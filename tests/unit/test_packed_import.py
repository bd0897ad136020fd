"""A GPTQ folder with act-order becomes an MLX folder with the same outputs."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mlx_nibble.io.packed_import import import_packed, is_packed
from tests import tiny_models
from tests.arrays import to_numpy
from tests.unit.test_packed import words


def gptq_folder(folder, act_order: bool, rng) -> dict[str, np.ndarray]:
    """A tiny llama in GPTQ's layout; returns the weights it stands for."""
    model = tiny_models.build("llama")
    stored, exact = {}, {}
    for path, value in tree_flatten(model.parameters()):
        if not path.endswith("_proj.weight"):
            stored[path] = value.astype(mx.float16)
            exact[path] = to_numpy(stored[path])
            continue
        rows, inputs = value.shape
        groups = inputs // 32
        codes = rng.integers(0, 16, (rows, inputs))
        scales = rng.uniform(0.01, 0.02, (rows, groups)).astype(np.float16)
        g_idx = np.arange(inputs) // 32
        if act_order:
            g_idx = rng.permutation(g_idx)
        prefix = path.removesuffix(".weight")
        zeros = np.full((groups, rows), 7)  # stored less one
        stored[f"{prefix}.qweight"] = mx.array(words(codes, 4).T)
        stored[f"{prefix}.qzeros"] = mx.array(words(zeros, 4))
        stored[f"{prefix}.scales"] = mx.array(scales.T)
        stored[f"{prefix}.g_idx"] = mx.array(g_idx.astype(np.int32))
        exact[path] = scales.astype(np.float32)[:, g_idx] * (codes - 8)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    config = tiny_models.config("llama") | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return exact


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_folder(act_order, rng, tmp_path):
    exact = gptq_folder(tmp_path / "gptq", act_order, rng)
    assert is_packed(tmp_path / "gptq")
    report = import_packed(tmp_path / "gptq", tmp_path / "mlx")
    assert report.bits == ({4: 3, 8: 18} if act_order else {4: 21})
    assert (report.permuted, report.rounded_again) == ((3, 18) if act_order else (0, 0))

    reference = tiny_models.build("llama")
    reference.load_weights([(k, mx.array(v)) for k, v in exact.items()])
    model, _ = load_model(tmp_path / "mlx")
    model.set_dtype(mx.float32)
    (tokens,) = tiny_models.tokens(1)
    got, expected = to_numpy(model(tokens)), to_numpy(reference(tokens))
    # Rounding again to 8 bits in groups of 32 loses 0.3 % of a weight.
    allowed = 0.03 if act_order else 1e-4
    assert abs(got - expected).max() <= allowed * abs(expected).max()


def test_other_folders_are_not_packed(tmp_path):
    assert not is_packed(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not is_packed(tmp_path)
    quantized = {"quantization_config": {"quant_method": "awq", "version": "gemv"}}
    (tmp_path / "config.json").write_text(json.dumps(quantized))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"a": mx.ones(1)})
    with pytest.raises(ValueError, match="must be of version gemm"):
        import_packed(tmp_path, tmp_path / "out")

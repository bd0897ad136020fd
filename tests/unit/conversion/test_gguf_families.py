"""Each architecture and each type: mlx-lm's own model of the dequantized weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import load
from mlx_lm.utils import dequantize_model

from bench.gguf_table import convert
from mlx_nibble.conversion.gguf_import import import_gguf
from tests.support.gguf_blocks import quantize
from tests.support.gguf_families import FAMILIES, Family, widened
from tests.support.gguf_models import random_model, write_family

IDS = mx.array([[3, 77, 20, 5, 131, 9, 250, 8, 60, 61, 62, 63]])


def parameters(model: nn.Module) -> dict[str, np.ndarray]:
    flat = tree_flatten(model.parameters())
    return {k: np.array(v.astype(mx.float32)) for k, v in flat}


def reference(family: Family, values: dict[str, np.ndarray]) -> nn.Module:
    """Return mlx-lm's model with the values that the file has."""
    model = random_model(family)
    model.update(tree_unflatten([(k, mx.array(v)) for k, v in values.items()]))
    return model


def require_same_logits(model: nn.Module, expected: nn.Module) -> None:
    got, wanted = np.array(model(IDS)), np.array(expected(IDS))
    scale = np.abs(wanted).max()
    assert np.isfinite(wanted).all() and wanted.std() > 0.01 * scale
    # Sums of up to 96 products in float32, in another order, in at most four layers.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=scale * 96 * 2**-22)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_architecture_is_mlx_lms_model(tmp_path, name):
    family = FAMILIES[name]
    values = write_family(tmp_path / "m.gguf", family, random_model(family))
    import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    model, _ = load(str(tmp_path / "out"))
    got = parameters(model)
    assert got.keys() == values.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)
    require_same_logits(model, reference(family, values))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_architecture_is_mlx_lms_model_if_quantized(tmp_path, name):
    family = FAMILIES[name]

    def kind(tensor: str, shape: tuple[int, ...]) -> str:
        if "exps" in tensor:
            return "MXFP4"
        return "Q5_1" if "ffn" in tensor else "Q8_0"

    values = write_family(tmp_path / "m.gguf", family, random_model(family), kind)
    report = import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert not report.errors
    model, _ = load(str(tmp_path / "out"))
    require_same_logits(model, reference(family, values))


WIDE = Family(
    "llama", "llama", {"hidden_size": 256, "intermediate_size": 256}, rotated=True
)
EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS")
NEAREST = {"Q2_K": 6, "Q3_K": 6, "Q6_K": 8}
PLAIN = ("F32", "F16", "BF16")


def converted(folder: Path, kind: str, model: nn.Module | None = None, **options):
    model = random_model(WIDE) if model is None else model
    values = write_family(folder / "m.gguf", WIDE, model, lambda name, shape: kind)
    report = import_gguf(folder / "m.gguf", folder / "out", **options)
    model, _ = load(str(folder / "out"))
    return values, report, model


def matrices(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v for k, v in values.items() if v.ndim > 1}


@pytest.mark.parametrize("kind", [*EXACT, *PLAIN, "MXFP4"])
def test_a_type_keeps_every_value(tmp_path, kind):
    values, report, model = converted(tmp_path, kind)
    count = len(matrices(values))
    assert report.kinds.keys() == {kind}
    assert (report.kinds[kind].count, report.kinds[kind].exact) == (count, count)
    require_same_logits(model, reference(WIDE, values))
    got = parameters(dequantize_model(model))
    for path, value in matrices(values).items():
        # mx.dequantize rounds the product, ggml's formula does not.
        np.testing.assert_allclose(
            got[path], value, rtol=2**-22, atol=2**-22 * np.abs(value).max()
        )


@pytest.mark.parametrize(("kind", "bits"), NEAREST.items())
def test_a_type_in_groups_of_16_gets_the_nearest_form(tmp_path, kind, bits):
    values, report, model = converted(tmp_path, kind)
    assert report.bits == {bits: len(matrices(values))}
    assert report.errors.keys() == {k.removesuffix(".weight") for k in matrices(values)}
    got = parameters(dequantize_model(model))
    for path, value in matrices(values).items():
        groups = value.reshape(-1, 32)
        # Half a step of the whole range, as a plain min-max grid loses at most.
        step = (groups.max(-1) - groups.min(-1)) / (2**bits - 1)
        lost = np.abs(got[path].reshape(groups.shape) - groups)
        assert np.square(lost).mean() <= np.square(step / 2).mean()
        stated = report.errors[path.removesuffix(".weight")]
        exact = np.sqrt(np.square(lost).sum() / np.square(groups).sum())
        np.testing.assert_allclose(stated, exact, rtol=1e-3)


@pytest.mark.parametrize("kind", NEAREST)
@pytest.mark.parametrize("norms", ["of many bits", "of few bits"])
def test_values_are_kept_if_asked(tmp_path, kind, norms):
    model = random_model(WIDE)
    if norms == "of few bits":  # float16 is exact for all but the matrices
        ones = {k: mx.ones_like(v) for k, v in tree_flatten(model.parameters())}
        model.update(tree_unflatten([(k, v) for k, v in ones.items() if "norm" in k]))
    values, report, model = converted(tmp_path, kind, model, keep="values")
    assert report.dtype == "float32"
    assert not report.bits and not report.errors
    assert report.kinds[kind].bits is None
    got = parameters(model)
    for path, value in values.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "IQ4_XS", "F32"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scales_and_values_are_rounded_once_if_asked(tmp_path, kind, dtype):
    values, report, _ = converted(tmp_path, kind, dtype=dtype)
    unit = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    assert report.dtype == dtype
    assert len(report.errors) == len(matrices(values))
    # Scale and bias are each off by a unit at most; their parts are larger than w.
    assert 0 < report.kinds[kind].error < 8 * unit


# python -m bench.gguf_table converts every type in every architecture.
@pytest.mark.parametrize(
    ("name", "kind"), [("phi3", "Q4_K"), ("deepseek3", "Q6_K"), ("gpt-oss", "IQ4_XS")]
)
def test_drawn_types_in_drawn_architectures(tmp_path, name, kind):
    cell = convert(widened(FAMILIES[name]), kind, quantize, tmp_path)
    assert cell.right and (cell.loss == 0) == (kind in EXACT)


def test_parts_of_the_packages_writer_are_one_model(tmp_path):
    family = FAMILIES["qwen3"]
    model = random_model(family)
    write_family(tmp_path / "whole.gguf", family, model)
    write_family(tmp_path / "m.gguf", family, model, split_max_tensors=8)
    parts = sorted(tmp_path.glob("m-*-of-*.gguf"))
    assert len(parts) == 4 and parts[1].name == "m-00002-of-00004.gguf"
    import_gguf(tmp_path / "whole.gguf", tmp_path / "whole")
    import_gguf(parts[2], tmp_path / "out")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()


FREQUENCIES = np.linspace(1, 3, 8, dtype=np.float32)


def with_frequencies(folder: Path, factors: np.ndarray) -> Path:
    """Write a llama with factors of the frequencies; return the file."""
    family = replace(
        FAMILIES["llama"],
        write=lambda writer, config: writer.add_tensor("rope_freqs.weight", factors),
    )
    write_family(folder / "m.gguf", family, random_model(family))
    return folder / "m.gguf"


def test_factors_that_no_scaling_explains_are_kept(tmp_path):
    import_gguf(with_frequencies(tmp_path, FREQUENCIES), tmp_path / "out")
    model, _ = load(str(tmp_path / "out"))
    rope = model.layers[0].self_attn.rope
    expected = FREQUENCIES * 1e4 ** (np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(np.array(rope._freqs), expected, rtol=2**-21)
    assert rope._scale == 1


@pytest.mark.parametrize("factors", [FREQUENCIES[:4], FREQUENCIES - 1])
def test_wrong_factors_are_refused(tmp_path, factors):
    with pytest.raises(ValueError, match="rope_freqs.weight"):
        import_gguf(with_frequencies(tmp_path, factors), tmp_path / "out")


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_without_tensors_are_refused_before_any_work(tmp_path, name):
    family = FAMILIES[name]
    write_family(tmp_path / "m.gguf", family, random_model(family))
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    key = f"{family.arch}.block_count".encode()
    at = content.index(key) + len(key) + 4
    content[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ValueError, match="2147483647 layers need more tensors"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")


REFUSED = {
    "qwen3moe": lambda writer, config: (
        FAMILIES["qwen3moe"].write(writer, config),
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        writer.add_rope_scaling_factor(4.0),
        writer.add_rope_scaling_orig_ctx_len(32),
    ),
    "gemma2": lambda writer, config: (
        FAMILIES["gemma2"].write(writer, config),
        writer.add_rope_scaling_factor(4.0),
    ),
    "qwen2": lambda writer, config: writer.add_key_length(24),
    "phi3": lambda writer, config: writer.add_rope_scaling_attn_factors(1.5),
    "granite": lambda writer, config: writer.add_rope_scaling_finetuned(False),
    "deepseek2": lambda writer, config: (
        FAMILIES["deepseek2"].write(writer, config),
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID),
    ),
    "llama": lambda writer, config: writer.add_expert_count(8),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mlx_lms_model_does_not_compute_is_refused(tmp_path, name):
    family = replace(FAMILIES[name], write=REFUSED[name])
    write_family(tmp_path / "m.gguf", family, random_model(FAMILIES[name]))
    with pytest.raises(ValueError, match=r"^\[gguf\] "):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()

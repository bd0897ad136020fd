"""Each architecture and each type: mlx-lm's own model of the dequantized weights."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import load
from mlx_lm.utils import dequantize_model

from mlx_nibble.conversion.gguf_import import import_gguf
from tests.support.gguf_families import (
    FAMILIES,
    Family,
    random_model,
    write_family,
)

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


def converted(folder: Path, kind: str, **options):
    values = write_family(
        folder / "m.gguf", WIDE, random_model(WIDE), lambda name, shape: kind
    )
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
def test_values_are_kept_if_asked(tmp_path, kind):
    values, report, model = converted(tmp_path, kind, keep="values")
    assert not report.bits and not report.errors
    assert report.kinds[kind].bits is None
    got = parameters(model)
    for path, value in values.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "IQ4_XS"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scales_are_rounded_once_if_asked(tmp_path, kind, dtype):
    values, report, _ = converted(tmp_path, kind, dtype=dtype)
    unit = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    assert report.dtype == dtype
    assert len(report.errors) == len(matrices(values))
    # Scale and bias are each off by a unit at most; their parts are larger than w.
    assert 0 < report.kinds[kind].error < 8 * unit

"""A conversion on a GPU is as exact as the same one on the CPU."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mlx_nibble.cli.convert_options import METHODS
from mlx_nibble.conversion.convert import convert
from mlx_nibble.conversion.options import Calibration, Options
from tests.support import model_folders, tiny_models

pytestmark = pytest.mark.skipif(not mx.is_available(mx.gpu), reason="there is no GPU")


def errors(folder: Path, source: Path) -> dict[str, float]:
    """Return the relative error of each quantized matrix."""
    stored = dict(mx.load(str(folder / "model.safetensors")))
    exact = dict(mx.load(str(source / "model.safetensors")))
    found = {}
    for name in stored:
        if name.endswith(".scales"):
            path = name.removesuffix(".scales")
            parts = (stored[f"{path}.{part}"] for part in ("weight", "scales"))
            w = mx.dequantize(*parts, stored[f"{path}.biases"], 32, 4, dtype=mx.float32)
            off = w - exact[f"{path}.weight"]
            found[path] = (mx.linalg.norm(off) / mx.linalg.norm(w)).item()
    return found


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_conversion_is_that_of_the_cpu(method, tmp_path):
    sizes = {"vocab_size": model_folders.VOCABULARY, "num_hidden_layers": 2}
    source, text = tmp_path / "model", tmp_path / "text.txt"
    model = tiny_models.build("llama", **sizes)
    model_folders.write(source, model, tiny_models.config("llama", **sizes))
    text.write_text("to be, or not to be. " * 40)
    options = Options(
        group_size=32,
        method=METHODS[method],
        calibration=Calibration(str(text), 2, 32),
    )
    before = mx.default_device()
    found = {}
    try:
        for device in ("cpu", "gpu"):
            mx.set_default_device(getattr(mx, device))
            convert(str(source), tmp_path / device, options)
            found[device] = errors(tmp_path / device, source)
    finally:
        mx.set_default_device(before)
    assert found["cpu"] and found["cpu"].keys() == found["gpu"].keys()
    for path, error in found["cpu"].items():
        assert found["gpu"][path] == pytest.approx(error, rel=0.05), path

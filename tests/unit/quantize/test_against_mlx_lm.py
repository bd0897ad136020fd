"""Our GPTQ and AWQ against mlx-lm's, by the objective of both papers.

The objective is the squared error of the layer's output on the calibration inputs.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.quant.awq import search_best_clip, search_best_scale
from mlx_lm.quant.gptq import gptq_quantize

from mlx_nibble.formats import Format
from mlx_nibble.quantize import awq
from mlx_nibble.quantize.gptq import gptq
from mlx_nibble.quantize.hessian import diagonal_blocks, output_error
from mlx_nibble.quantize.method import Method, quantize
from mlx_nibble.quantize.rules import affine
from mlx_nibble.quantize.search import search
from tests.support.arrays import to_numpy

GROUP = 32


def layer(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a heavy-tailed weight [64, 128] and correlated inputs [512, 128]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(512, 128)) @ rng.normal(size=(128, 128)) * 0.1
    x = x * np.exp(rng.normal(size=128))
    return (
        rng.standard_t(5, size=(64, 128)).astype(np.float32),
        x.astype(np.float32),
    )


def linear(w: np.ndarray) -> nn.Linear:
    module = nn.Linear(w.shape[1], w.shape[0], bias=False)
    module.weight = mx.array(w)
    return module


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_gptq_loses_no_more_than_mlx_lms(bits, seed):
    w, x = layer(seed)
    h, form = x.T @ x, Format(bits, GROUP, "float32")
    model = nn.Sequential(linear(w))
    model, _ = gptq_quantize(model, mx.array(x), bits, GROUP, 8, 64, batch_size=512)
    theirs = model.layers[0]
    approx = mx.dequantize(theirs.weight, theirs.scales, theirs.biases, GROUP, bits)
    error = output_error(w, to_numpy(approx), h)
    assert output_error(w, gptq(w, h, form).dequantize(), h) <= error
    method = Method(damping=0.01)
    assert output_error(w, quantize(w, form, method, h).dequantize(), h) < 0.9 * error


@pytest.mark.parametrize("seed", range(3))
def test_awq_scales_lose_no_more_than_mlx_lms(seed):
    w, x = layer(seed)
    h, form = x.T @ x, Format(4, GROUP, "float32")

    def rounded(w: mx.array) -> mx.array:
        return mx.dequantize(*mx.quantize(w, GROUP, 4), GROUP, 4)

    module = linear(w)
    module.input_feat = mx.array(x)[None]
    theirs = to_numpy(search_best_scale([module], rounded, None, {}, n_grid=20))
    ours = awq.scales([w], h, form, magnitude=abs(x).mean(0))

    def error(s: np.ndarray) -> float:
        return output_error(w, affine(w * s, form).dequantize() / s, h)

    # The 20 candidates are the same, so errors differ by float32 rounding alone.
    assert error(ours) <= error(theirs) * (1 + 1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_by_blocks_clips_no_worse_than_mlx_lms(seed):
    """Both measure the output error of each group separately."""
    w, x = layer(seed)
    form = Format(4, GROUP, "float32")

    def rounded(w: mx.array) -> mx.array:
        return mx.dequantize(*mx.quantize(w, GROUP, 4), GROUP, 4)

    module = linear(w)
    module.input_feat = mx.array(x)[None]
    clipped = search_best_clip(module, rounded, GROUP, n_grid=20, n_frames=512)
    blocks = diagonal_blocks(x.T @ x, GROUP)

    def error(approx: np.ndarray) -> float:
        delta = (w - approx).reshape(64, -1, GROUP).astype(np.float64)
        return float(np.einsum("ngi,gij,ngj->", delta, blocks, delta))

    theirs = error(to_numpy(rounded(clipped)))
    assert error(search(w, form, blocks).dequantize()) < theirs

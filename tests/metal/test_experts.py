"""`batch_invariant` reaches a mixture's experts on a GPU."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchGLU

import mlx_nibble
from mlx_nibble import _native
from mlx_nibble.machine import gpu
from tests.metal.replay import execute

# The class below takes its place.
_EXT = _native.ext

EXPERTS, TOP, WIDTH, HIDDEN = 4, 2, 128, 64
# Enough tokens that mlx-lm sorts the products and that tiles compute them.
TOKENS = 40


class Gpu:
    """The extension; the stand-in GPU computes each product at once.

    MLX's own nodes cannot run there, so the CPU prepares the inputs.
    """

    def __init__(self, recorder) -> None:
        self._recorder = recorder

    def __getattr__(self, name):
        return getattr(_EXT, name)

    def gated_products(self, gate, up):
        return None

    def gather_qmm(
        self, x, w, scales, biases, lhs_indices=None, rhs_indices=None, **options
    ):
        assert lhs_indices is None
        lhs = mx.arange(x.size // x.shape[-1] // x.shape[-2])
        lhs, rhs = mx.broadcast_arrays(lhs.reshape(x.shape[:-2]), rhs_indices)
        inputs = [mx.contiguous(a) for a in (x, w, scales, biases)]
        inputs += [mx.contiguous(a.astype(mx.uint32)) for a in (lhs, rhs)]
        mx.eval(inputs)
        options["stream"] = self._recorder.stream
        y = self._recorder.module.gather_qmm(*inputs, **options)
        self._recorder.evaluate(y)
        return y


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = SwitchGLU(WIDTH, HIDDEN, EXPERTS)

    def __call__(self, x, chosen):
        return self.experts(x, chosen)


@pytest.fixture
def launched(recorder, monkeypatch):
    """The names of the kernels that the GPU runs, which is the default device."""
    names: list[str] = []

    def run(dispatch):
        names.append(dispatch.kernel)
        execute(dispatch)

    recorder.set_executor(run)
    monkeypatch.setattr(_native, "ext", Gpu(recorder))
    return names


@pytest.fixture
def accelerated(launched, monkeypatch):
    """Returns a mixture on our kernels, as accelerate() makes it on a GPU."""

    def make(**settings):
        mx.random.seed(0)
        model = Mixture()
        nn.quantize(model, 64, 4)
        mx.eval(model.parameters())
        with monkeypatch.context() as patch:
            patch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
            patch.setattr(gpu, "has_our_kernels", lambda: True)
            report = mlx_nibble.accelerate(model, tuned=False, **settings)
        assert len(report.swapped) == 3
        return model

    return make


@pytest.fixture
def batch(rng):
    """Tokens [1, TOKENS, WIDTH], and the experts that each chooses."""
    x = mx.array(rng.standard_normal((1, TOKENS, WIDTH)).astype(np.float16))
    chosen = np.argsort(rng.random((1, TOKENS, EXPERTS)))[..., :TOP]
    return x, mx.array(chosen.astype(np.uint32))


def test_a_token_s_bits_do_not_depend_on_its_neighbours(accelerated, batch, launched):
    model = accelerated(batch_invariant=True)
    x, chosen = batch
    together = model(x, chosen)
    for first, last in ((0, 1), (7, 8), (8, 13)):
        alone = model(x[:, first:last], chosen[:, first:last])
        assert mx.array_equal(alone, together[:, first:last]), (first, last)
    products = [name for name in launched if name != "contiguous"]
    assert len(products) == 12
    assert all(name.startswith("gather_qmm_skinny_") for name in products), products


def test_without_it_the_number_of_tokens_decides(accelerated, batch, launched):
    """So the test above would fail if the setting were lost."""
    model = accelerated()
    x, chosen = batch
    model(x, chosen)
    model(x[:, :1], chosen[:, :1])
    families = [name[: name.index("_f16")] for name in launched]
    assert families == ["gather_qmm"] * 3 + ["gather_qmv"] * 3


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_experts_gate_and_up_in_one_launch_are_not_batch_invariant(
    recorder, rng, batch_invariant
):
    """One launch adds up a row in another order than two products do."""
    x = mx.array(rng.standard_normal((1, 1, WIDTH)).astype(np.float16))
    gate, up = (
        mx.quantize(mx.array(rng.standard_normal((3, 24, WIDTH)).astype(np.float16)))
        for _ in range(2)
    )
    lhs, rhs = mx.array([0, 0], mx.uint32), mx.array([2, 0], mx.uint32)
    mx.eval(x, gate, up, lhs, rhs)
    settings = {"batch_invariant": batch_invariant}
    y = recorder.swiglu(x, gate, up, lhs, rhs, **settings)
    assert (recorder.node(y) == "NibbleSwigluMatmul") is not batch_invariant
    products = [recorder.gather_qmm(x, *w, lhs, rhs, **settings) for w in (gate, up)]
    assert (recorder.gated_products(*products) is None) is batch_invariant

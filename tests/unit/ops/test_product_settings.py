"""Each product passes its settings on to the extension."""

from __future__ import annotations

from unittest.mock import Mock

import mlx.core as mx
import pytest
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

from mlx_nibble import _native, nn, ops
from mlx_nibble.acceleration.route import quantized_layers

X = mx.zeros((2, 64))
MATRIX = tuple(mx.quantize(mx.zeros((32, 64))))
PRODUCTS = {
    "quantized_matmul": (ops.quantized_matmul, (X, *MATRIX)),
    "gather_qmm": (ops.gather_qmm, (X, *MATRIX)),
    "swiglu_matmul": (ops.swiglu, (X, MATRIX, MATRIX)),
    "gather_swiglu": (ops.gather_swiglu, (X, MATRIX, MATRIX)),
}


@pytest.fixture
def ext(monkeypatch):
    stand_in = Mock()
    monkeypatch.setattr(_native, "ext", stand_in)
    return stand_in


@pytest.mark.parametrize("setting", ["batch_invariant", "symmetric"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_settings_reach_the_extension(ext, name, setting):
    product, arguments = PRODUCTS[name]
    function = getattr(ext, name)
    product(*arguments)
    assert function.call_args.kwargs[setting] is False
    product(*arguments, **{setting: True})
    assert function.call_args.kwargs[setting] is True


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(("activations", "bits"), [("int16", 16), ("int8", 8)])
def test_activations_reach_the_extension(ext, name, activations, bits):
    product, arguments = PRODUCTS[name]
    product(*arguments, activations=activations)
    assert getattr(ext, name).call_args.kwargs["activation_bits"] == bits


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_experts_have_the_settings_of_their_model(ext, batch_invariant):
    experts = QuantizedSwitchLinear(64, 32, 4)
    options = nn.Options(activations="int8", batch_invariant=batch_invariant)
    layers = quantized_layers(options, on_cpu=False)
    rebound = layers.subclass(QuantizedSwitchLinear)
    assert rebound is not None
    experts.__class__ = rebound.kind
    experts.pop("bias")
    experts(X[None], mx.array([[0]]))
    kwargs = ext.gather_qmm.call_args.kwargs
    assert kwargs.get("batch_invariant", False) is batch_invariant
    assert kwargs["activation_bits"] == 8

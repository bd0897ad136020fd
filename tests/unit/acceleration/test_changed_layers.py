"""Layers that change after accelerate(), or that a model uses in two places."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.tuner.lora import LoRALinear

import mlx_nibble


def quantized(bits=4, group_size=64):
    return nn.Linear(128, 128, bias=False).to_quantized(group_size, bits)


def replace_arrays(model, i):
    layer = model.layers[i]
    layer.update(quantized(layer.bits).parameters())
    layer.biases = 1.5 * layer.biases


def replace_format(model, i):
    layer = model.layers[i]
    layer.update(quantized(8, 32).parameters())
    layer.bits, layer.group_size = 8, 32


def write_into_arrays(model, i):
    model.layers[i].biases[:] = 0.25
    model.layers[i].scales *= 2


def put_adapter_on(model, i):
    model.layers[i] = LoRALinear.from_base(model.layers[i], r=4)
    model.layers[i].lora_b = mx.random.normal((4, 128))


def quantize_anew(model, i):
    model.layers[i] = nn.Linear(128, 128)
    nn.quantize(model, group_size=32, bits=8)


CHANGES = [
    replace_arrays,
    replace_format,
    write_into_arrays,
    put_adapter_on,
    quantize_anew,
]


@pytest.mark.parametrize("repack", [False, True])
@pytest.mark.parametrize("bits", [2, 4])  # the 2-bit biases are recognised and not read
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layer_computes_by_what_it_holds_now(change, bits, repack):
    model = nn.Sequential(quantized(bits), nn.ReLU(), quantized())
    x = mx.random.normal((3, 128))
    report = mlx_nibble.accelerate(model, repack=repack)
    mx.eval(model(x))  # makes the copies
    change(model, 0)
    ours = model(x)
    mx.eval(ours)
    report.undo()
    assert not any("mlx_nibble" in type(m).__module__ for m in model.modules())
    assert mx.allclose(ours, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("repack", [False, True])
def test_a_layer_in_two_places_and_in_containers(repack):
    layer = quantized()
    model = nn.Module()
    model.places = {"one": layer, "more": [layer, [quantized(5)]]}

    def run(x):
        first, (second, (third,)) = model.places["one"], model.places["more"]
        return third(second(first(x)))

    x = mx.random.normal((3, 128))
    before = run(x)
    kinds = [type(m) for m in model.modules()]
    report = mlx_nibble.accelerate(model, repack=repack)
    assert type(layer) is mlx_nibble.nn.QuantizedLinear
    assert mx.allclose(run(x), before, rtol=1e-4, atol=1e-4)
    report.undo()
    assert [type(m) for m in model.modules()] == kinds
    assert mx.array_equal(run(x), before)

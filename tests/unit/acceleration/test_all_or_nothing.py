"""accelerate() that fails changes nothing."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_nibble
from mlx_nibble.acceleration import accelerate as module
from mlx_nibble.acceleration import repack, shared_modules, symmetric
from tests.support import families, tiny_models

IDS = tiny_models.tokens(1, 12)[0]


class Fault(BaseException):
    """Like Ctrl-C: no Exception."""


@pytest.fixture(params=["llama", "qwen3_moe"])
def model(request):
    return families.stock(request.param)


def state(model):
    return [(path, m, type(m)) for path, m in model.named_modules()]


def fails_nothing_changed(model, **settings):
    before, output = state(model), model(IDS)
    mx.eval(output)
    with pytest.raises(Fault):
        mlx_nibble.accelerate(model, **settings)
    assert state(model) == before
    assert mx.array_equal(model(IDS), output)


def at_call(monkeypatch, owner, name, index):
    """Make a function fail at one of its calls."""
    original, calls = getattr(owner, name), []

    def faulty(*args, **kwargs):
        calls.append(None)
        if len(calls) > index:
            raise Fault
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, faulty)


def test_at_each_layer(model, monkeypatch):
    for index in range(len(model.modules())):
        with monkeypatch.context() as patch:
            at_call(patch, module, "decide", index)
            fails_nothing_changed(model)
    assert mlx_nibble.accelerate(model).swapped


def test_in_each_call_of_the_predicate(model):
    count = sum("scales" in m for m in model.modules())
    for index in range(count):
        left = [None] * index

        def predicate(path, layer, left=left):
            if not left:
                raise Fault
            left.pop()
            return True

        before = state(model)
        with pytest.raises(Fault):
            mlx_nibble.accelerate(model, predicate)
        assert state(model) == before


@pytest.mark.parametrize(
    ("owner", "name", "index"),
    [
        (module, "recognise_symmetric", 0),
        (module, "_tuned_layers", 0),
        (module, "repack_layers", 0),
        *((symmetric, "_holds", index) for index in (0, 1, 5)),
        *((shared_modules, "_shared", index) for index in (0, 1, 5)),
        *((repack, "pack", index) for index in (0, 1, 5)),
    ],
)
def test_in_each_step(model, monkeypatch, owner, name, index):
    at_call(monkeypatch, owner, name, index)
    fails_nothing_changed(model)
    assert not any(
        repack.is_packed(value) for m in model.modules() for value in m.values()
    )


def test_an_earlier_acceleration_stays(model, monkeypatch):
    report = mlx_nibble.accelerate(model)
    at_call(monkeypatch, module, "_tuned_layers", 0)
    fails_nothing_changed(model, batch_invariant=True)
    report.undo()
    assert not any(
        m.__class__.__module__.startswith("mlx_nibble") for m in model.modules()
    )


class Registered(nn.Module):
    """A class whose subclasses need a name."""

    known: ClassVar[dict] = {}

    def __init_subclass__(cls, *, name, **rest):
        super().__init_subclass__(**rest)
        Registered.known[name] = cls


class Block(Registered, name="block"):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(64, 64)

    def __call__(self, x):
        return mx.fast.rms_norm(self.proj(x), None, 1e-5)


class Layer(nn.QuantizedLinear):
    def __init_subclass__(cls, **rest):
        raise RuntimeError("no subclass")

    def __call__(self, x):
        return mx.quantized_matmul(
            x, self["weight"], self["scales"], self["biases"],
            group_size=self.group_size, bits=self.bits,
        )  # fmt: skip


def test_a_class_that_allows_no_subclass_is_left_to_mlx():
    model = nn.Sequential(nn.Linear(64, 64), Block(), Layer(64, 64, False, 32, 4))
    nn.quantize(model, 32, 4)
    x = mx.random.normal((2, 64))
    before = model(x)
    report = mlx_nibble.accelerate(model)
    assert len(report.swapped) == 2 and type(model.layers[1]) is Block
    assert [kept.reason for kept in report.kept] == ["its class allows no subclass"]
    assert mx.allclose(model(x), before, atol=1e-4)
    assert Registered.known == {"block": Block}

"""Two models that share one activation module: accelerating one leaves the other.

mlx-lm's SwitchGLU has a module as the default value of an argument.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.activations import swiglu
from mlx_lm.models.switch_layers import SwiGLU, SwitchGLU

import mlx_nibble
from mlx_nibble.acceleration.rebind import original
from tests.support import families, tiny_models

IDS = tiny_models.tokens(1, 12)[0]


def activations(model):
    """Return the activation modules of every layer's experts."""
    return [m["activation"] for m in model.modules() if isinstance(m, SwitchGLU)]


@pytest.fixture(params=["qwen3_moe", "deepseek_v3"])
def models(request):
    one, other = (families.stock(request.param) for _ in range(2))
    shared = activations(one)[0]
    assert all(a is shared for a in activations(one) + activations(other))
    return one, other, shared


def test_accelerating_one_leaves_the_other_alone(models):
    one, other, shared = models
    before = other(IDS)
    mx.eval(before)
    report = mlx_nibble.accelerate(one)
    assert type(shared) is SwiGLU
    assert all(a is shared for a in activations(other))
    assert mx.array_equal(other(IDS), before)
    own = activations(one)
    assert all(a is own[0] and a is not shared for a in own)
    assert isinstance(own[0], SwiGLU) and type(own[0]) is not SwiGLU
    paths = {r.path for r in report.routed if original(type(r.module)) is SwiGLU}
    assert len(paths) == 1 and paths.pop().endswith("switch_mlp.activation")


def test_undo_of_one_leaves_the_other_accelerated(models):
    one, other, shared = models
    stock = one(IDS)
    mx.eval(stock)
    first, second = mlx_nibble.accelerate(one), mlx_nibble.accelerate(other)
    ours = other(IDS)
    mx.eval(ours)
    first.undo()
    assert all(a is shared for a in activations(one))
    assert mx.array_equal(one(IDS), stock)
    assert type(activations(other)[0]) is not SwiGLU
    assert mx.array_equal(other(IDS), ours)
    second.undo()
    assert all(a is shared for a in activations(other))
    assert mx.array_equal(other(IDS), stock)
    assert type(shared) is SwiGLU and not first.replaced


def test_accelerated_twice_and_undone_in_any_order(models):
    one, _, shared = models
    first = mlx_nibble.accelerate(one)
    own = activations(one)[0]
    second = mlx_nibble.accelerate(one, batch_invariant=True)
    assert not second.replaced and activations(one)[0] is own
    first.undo()
    second.undo()
    assert all(a is shared for a in activations(one))
    assert type(shared) is SwiGLU


def test_undo_keeps_what_has_taken_its_place(models):
    one, _, shared = models
    report = mlx_nibble.accelerate(one)
    experts = next(m for m in one.modules() if isinstance(m, SwitchGLU))
    experts.activation = mine = SwiGLU()
    report.undo()
    assert experts.activation is mine
    assert activations(one)[1] is shared


def test_defaults_by_keyword_and_by_inheritance():
    class Gate(nn.Module):
        def __call__(self, x):
            return swiglu(x, x)

    class Base(nn.Module):
        def __init__(self, *, gate=Gate(), plain=nn.ReLU()):  # noqa: B008
            super().__init__()
            self.gate, self.plain = gate, plain

    class Own(Base):
        pass

    one, other, given = Own(), Own(), Gate()
    with_given = Own(gate=given)
    plain = one.plain
    report = mlx_nibble.accelerate(nn.Sequential(one, with_given))
    assert one.gate is not other.gate and one.plain is plain
    assert with_given.gate is given  # it has its own already
    report.undo()
    assert one.gate is other.gate and type(given) is Gate

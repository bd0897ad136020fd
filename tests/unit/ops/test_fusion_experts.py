"""Gate, up and SwiGLU of experts: one node, as in dense layers."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import make_prompt_cache

import mlx_nibble
from mlx_nibble import fast, ops
from tests.support import tiny_models
from tests.support.arrays import to_numpy
from tests.support.graph import node_names
from tests.support.tolerance import relative_rms

B, L, K, EXPERTS = 2, 5, 64, 5


def experts(seed: int, rows: int = 96) -> tuple[mx.array, mx.array, mx.array]:
    w = mx.random.normal((EXPERTS, rows, K), key=mx.random.key(seed))
    parts = mx.quantize(w, group_size=32, bits=4)
    mx.eval(parts)
    return parts


GATE, UP = experts(4), experts(5)


def routed(dtype: mx.Dtype, in_order: bool) -> tuple[mx.array, mx.array]:
    """Return rows and experts, as SwitchGLU passes them for few or many tokens."""
    x = mx.random.normal((B, L, 1, 1, K), key=mx.random.key(9)).astype(dtype)
    chosen = mx.random.randint(0, EXPERTS, (B, L, 3), key=mx.random.key(8))
    chosen = chosen.astype(mx.uint32)
    if in_order:
        x = mx.repeat(x.reshape(-1, 1, K), 3, axis=0)
        chosen = mx.sort(chosen.flatten())
    mx.eval(x, chosen)
    return x, chosen


def chosen_product(x: mx.array, w: tuple, rhs: mx.array | None, **kwargs) -> mx.array:
    settings = dict(rhs_indices=rhs, group_size=32, bits=4)
    return ops.gather_qmm(x, *w, **(settings | kwargs))


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("int8", [None, "int8"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_gate_up_and_swiglu_of_experts_are_one_node(in_order, int8, dtype):
    x, chosen = routed(dtype, in_order)
    gate, up = (
        chosen_product(x, w, chosen, sorted_indices=in_order, activations=int8)
        for w in (GATE, UP)
    )
    y = fast.swiglu(gate, up)
    assert node_names(y)["NibbleSwigluMatmul"] == 1
    assert node_names(y)["NibbleGatherQMM"] == node_names(y)["NibbleActivation"] == 0
    mx.eval(gate, up)
    apart = fast.swiglu(gate, up)
    assert node_names(apart)["NibbleSwigluMatmul"] == 0
    assert y.shape == apart.shape and y.dtype == apart.dtype
    # One rounding in place of three.
    assert relative_rms(to_numpy(y), to_numpy(apart)) < 4 * mx.finfo(dtype).eps


def test_experts_with_rows_chosen_by_both_are_one_node_too():
    x, _ = routed(mx.float32, True)
    rows, chosen = mx.array([4, 0, 2], mx.uint32), mx.array([1, 3, 3], mx.uint32)
    mx.eval(rows, chosen)

    def run(joined: bool) -> mx.array:
        gate, up = (chosen_product(x, w, chosen, lhs_indices=rows) for w in (GATE, UP))
        if not joined:
            mx.eval(gate, up)
        y = fast.swiglu(gate, up)
        assert ("NibbleSwigluMatmul" in node_names(y)) == joined
        return y

    tolerance = 4 * mx.finfo(mx.float32).eps
    assert relative_rms(to_numpy(run(True)), to_numpy(run(False))) < tolerance


def test_experts_of_other_rows_choices_or_settings_stay_apart():
    x, chosen = routed(mx.float32, True)
    other_x, other = mx.array(x), (EXPERTS - 1 - chosen).astype(mx.uint32)
    rows = mx.arange(x.shape[0])[::-1].astype(mx.uint32)
    mx.eval(other_x, other, rows)

    def check(joined: bool, x2: mx.array, rhs: mx.array, w=UP, **kwargs) -> None:
        gate = chosen_product(x, GATE, chosen)
        up = chosen_product(x2, w, rhs, **kwargs)
        y = fast.swiglu(gate, up)
        assert ("NibbleSwigluMatmul" in node_names(y)) == joined
        mx.eval(gate, up)
        apart = to_numpy(fast.swiglu(gate, up))
        assert relative_rms(to_numpy(y), apart) < 4 * mx.finfo(mx.float32).eps

    check(True, x, chosen)
    check(False, other_x, chosen)
    check(False, x, other)
    check(False, x, chosen, lhs_indices=rows)
    check(False, x, chosen, sorted_indices=True)
    check(False, x, chosen, tuple(a[:4] for a in UP))


def test_any_of_the_experts_products_can_be_computed_first():
    x, chosen = routed(mx.float32, False)
    gate, up = (chosen_product(x, w, chosen) for w in (GATE, UP))
    y = fast.swiglu(gate, up)
    want_gate, want_up = (chosen_product(x, w, chosen) for w in (GATE, UP))
    mx.eval(want_gate, want_up)
    assert mx.array_equal(up, want_up) and mx.array_equal(gate, want_gate)
    want = to_numpy(fast.swiglu(want_gate, want_up))
    assert relative_rms(to_numpy(y), want) < 4 * mx.finfo(mx.float32).eps


def test_transformations_see_each_product_of_experts():
    x, chosen = routed(mx.float32, False)

    def ours(x: mx.array) -> mx.array:
        gate, up = (chosen_product(x, w, chosen) for w in (GATE, UP))
        return fast.swiglu(gate, up).sum()

    def mlx(x: mx.array) -> mx.array:
        gate, up = (
            mx.gather_qmm(x, *w, rhs_indices=chosen, group_size=32, bits=4)
            for w in (GATE, UP)
        )
        return (nn.silu(gate) * up).sum()

    want = to_numpy(mx.vjp(mlx, [x], [mx.array(1.0)])[1][0])
    assert "NibbleSwigluMatmul" not in node_names(mx.grad(ours)(x))
    assert "NibbleSwigluMatmul" not in node_names(mx.compile(ours)(x))
    assert relative_rms(to_numpy(mx.grad(ours)(x)), want) < 1e-5
    assert relative_rms(to_numpy(mx.compile(mx.grad(ours))(x)), want) < 1e-5
    assert mx.allclose(mx.compile(ours)(x), ours(x), rtol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixtures_steps_with_a_cache(family):
    model = tiny_models.build(family)
    nn.quantize(model, group_size=32, bits=4)
    mx.eval(model.parameters())
    ids = tiny_models.tokens(1, 50)[0]

    def run() -> mx.array:
        cache = make_prompt_cache(model)
        # mlx-lm sorts 64 or more choices by expert.
        parts = [model(ids[:, :40], cache=cache)]
        parts += [model(ids[:, i : i + 1], cache=cache) for i in range(40, 50)]
        return mx.concatenate(parts, axis=1)

    stock = to_numpy(run())
    report = mlx_nibble.accelerate(model)
    assert relative_rms(to_numpy(run()), stock) < 1e-5
    for length in (40, 1):
        names = node_names(model(ids[:, :length]))
        # One node for gate and up, and one for down, in each of three layers.
        assert names["NibbleSwigluMatmul"] == names["NibbleGatherQMM"] == 3
    report.undo()
    assert "NibbleSwigluMatmul" not in node_names(model(ids))

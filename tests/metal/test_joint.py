"""Consecutive products of one x become one launch on a GPU."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tests import simt
from tests.metal.replay import execute
from tests.support import oracle, tolerance
from tests.support.arrays import to_mlx, to_numpy, weights_to_mlx

K, ROWS = 256, (70, 24, 9)
JOINT = "joint_qmv_f16_f16_b4_g64"


@pytest.fixture
def seen(recorder):
    """Compute each launch, and collect the names of the kernels."""
    names: list[str] = []

    def run(dispatch):
        names.append(dispatch.kernel)
        execute(dispatch)

    recorder.set_executor(run)
    yield names
    recorder.set_judge(None)


def projections(recorder, rng, M=1, biases=(False, True, False)):
    """Return x, products of it with one matrix each, and the exact results."""
    x = to_mlx(rng.standard_normal((1, M, K)), "float16")
    mx.eval(x)
    products, exact = [], []
    for N, biased in zip(ROWS, biases, strict=True):
        w = oracle.random_weights(rng, (N, K), 4, 64)
        arrays, w = weights_to_mlx(w, "float16")
        bias = to_mlx(rng.standard_normal(N), "float16") if biased else None
        mx.eval(arrays, [] if bias is None else bias)
        products.append(recorder.quantized_matmul(x, *arrays, bias=bias))
        added = to_numpy(bias).astype(np.float64) if biased else 0.0
        y = oracle.matmul(to_numpy(x), w.dequantize()) + added
        magnitude = oracle.matmul(abs(to_numpy(x)), w.magnitude()) + abs(added)
        allowed = tolerance.bound(y, magnitude, K + biased, "float16")
        exact.append((y, allowed))
    return x, products, exact


def assert_right(products, exact):
    for y, (value, allowed) in zip(products, exact, strict=True):
        tolerance.assert_close(to_numpy(y), value, allowed)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize(
    ("M", "expected"),
    [
        (1, JOINT),
        (2, "joint_qmv_multi_f16_f16_b4_g64_r2"),
        (5, "joint_qmv_multi_f16_f16_b4_g64_r5"),
        (6, "joint_qmm_skinny_f16_f16_b4_g64_bm8_bn32_wk8"),
    ],
)
def test_queries_keys_and_values_are_one_launch(
    recorder, seen, rng, M, expected, order
):
    _, products, exact = projections(recorder, rng, M)
    for i in order:
        recorder.evaluate(products[i])
    assert seen == [expected]
    assert_right(products, exact)
    addresses = [recorder.address(y) for y in products]
    assert all((address - min(addresses)) % 16 == 0 for address in addresses)


def test_what_is_encoded_is_what_was_planned(recorder, rng):
    x, products, _ = projections(recorder, rng)
    dispatches = []
    recorder.set_executor(dispatches.append)
    for y in products:
        recorder.evaluate(y)
    (dispatch,) = dispatches
    (launch,) = simt.plan_joint(
        [simt.Problem(N=N, K=K, bias=i == 1) for i, N in enumerate(ROWS)]
    )
    assert dispatch.kernel == launch.kernel
    # An earlier test may have compiled it together with others.
    assert f'"{launch.kernel}"' in dispatch.source
    assert dispatch.threadgroups == launch.threadgroups
    assert dispatch.threads == launch.threads
    assert dispatch.bytes == [(len(launch.buffers), launch.params)]
    bound = {a.index: a for a in dispatch.arrays}
    assert sorted(bound) == list(range(len(launch.buffers)))
    assert bound[9].address == recorder.address(x)
    written = {i for i, name in enumerate(launch.buffers) if name.startswith("out")}
    assert {i for i, a in bound.items() if a.output} == written == {13, 14, 15}
    # In one buffer, one after the other.
    addresses = [recorder.address(y) for y in products]
    assert [bound[i].address + bound[i].offset for i in (13, 14, 15)] == addresses


def test_a_product_that_is_gone_is_not_computed(recorder, seen, rng):
    _, products, exact = projections(recorder, rng)
    del products[1], exact[1]
    recorder.evaluate(products[0])
    recorder.evaluate(products[1])
    assert seen == [JOINT]
    assert_right(products, exact)


def test_a_product_alone_is_launched_alone(recorder, seen, rng):
    _, products, exact = projections(recorder, rng)
    del products[1:], exact[1:]
    recorder.evaluate(products[0])
    assert seen == ["qmv_f16_f16_b4_g64"]
    assert_right(products, exact)


def test_products_of_another_x_are_not_joined(recorder, seen, rng):
    one, other = (projections(recorder, rng) for _ in range(2))
    for _, products, exact in (one, other):
        for y in products:
            recorder.evaluate(y)
        assert_right(products, exact)
    assert seen == [JOINT, JOINT]


def test_products_built_after_the_first_was_computed_are_on_their_own(
    recorder, seen, rng
):
    x = to_mlx(rng.standard_normal((1, K)), "float16")
    w = mx.quantize(to_mlx(rng.standard_normal((24, K)), "float16"))
    mx.eval(x, w)
    first = recorder.quantized_matmul(x, *w)
    recorder.evaluate(first)
    second = recorder.quantized_matmul(x, *w)
    recorder.evaluate(second)
    assert seen == ["qmv_f16_f16_b4_g64"] * 2
    assert mx.array_equal(first, second)


def test_weights_that_are_not_there_yet_wait(recorder, seen, rng):
    x = to_mlx(rng.standard_normal((1, K)), "float16")
    w = mx.quantize(to_mlx(rng.standard_normal((24, K)), "float16"))
    mx.eval(x, w)
    late = recorder.quantized_matmul(x, w[0], w[1] * 1, w[2])
    ready = recorder.quantized_matmul(x, *w)
    recorder.evaluate(ready)
    assert seen == ["qmv_f16_f16_b4_g64"]
    del late


@pytest.mark.parametrize("which", [0, 1])
def test_weights_that_are_made_during_the_evaluation_are_not_joined(
    recorder, seen, rng, which
):
    """There, an array counts as available before a launch has written it."""
    x = to_mlx(rng.standard_normal((1, K)), "float16")
    w = mx.quantize(to_mlx(rng.standard_normal((24, K)), "float16"))
    mx.eval(x, w)
    late = [a * 1 for a in w]
    weights = [w, w]
    weights[which] = late
    products = [recorder.quantized_matmul(x, *arrays) for arrays in weights]
    mx.eval(late)
    for y in products:
        recorder.evaluate(y)
    assert seen == ["qmv_f16_f16_b4_g64"] * 2


def test_neighbours_weights_live_until_the_gpu_is_done(recorder, seen, rng):
    """The stand-in throws if a launch reads what nothing keeps (end_node())."""
    _, products, exact = projections(recorder, rng)
    recorder.evaluate(products[2])
    assert seen == [JOINT]
    recorder.evaluate(products[0])
    recorder.evaluate(products[1])
    assert_right(products, exact)


@pytest.mark.parametrize(
    ("M", "K", "N"), [(64, 256, 2560), (1, 128, 24), (1, 256, 4 * 16 * 20)]
)
def test_where_launches_do_not_matter_each_is_its_own(recorder, rng, M, K, N):
    """More rows, short ones, and matrices that fill the GPU by themselves."""
    w = mx.quantize(mx.zeros((N, K), mx.float16))
    x = mx.zeros((M, K), mx.float16)
    mx.eval(x, w)
    products = [recorder.quantized_matmul(x, *w) for _ in range(2)]
    dispatches = []
    recorder.set_executor(dispatches.append)
    for y in products:
        recorder.evaluate(y)
    assert len(dispatches) == 2
    assert not any(d.kernel.startswith("joint") for d in dispatches)


def test_a_joint_kernel_that_is_not_trusted_is_not_used(recorder, seen, rng):
    recorder.set_judge(lambda kernel: not kernel.startswith("joint"))
    _, products, exact = projections(recorder, rng)
    for y in products:
        recorder.evaluate(y)
    assert seen == ["qmv_f16_f16_b4_g64"] * 3
    assert_right(products, exact)


def test_a_traced_graph_is_left_alone(recorder, seen, rng):
    w = mx.quantize(to_mlx(rng.standard_normal((24, K)), "float16"))
    x = to_mlx(rng.standard_normal((1, K)), "float16")
    mx.eval(x, w)
    nodes = []

    def f(x):
        y = [recorder.quantized_matmul(x, *w) for _ in range(2)]
        nodes.extend(map(recorder.node, y))
        return y[0] + y[1]

    mx.jvp(f, [x], [x])
    assert nodes == ["NibbleQuantizedMatmul"] * 2
    assert not seen


def gate_and_up(recorder, rng, M=1):
    x = to_mlx(rng.standard_normal((1, M, K)), "float16")
    pairs = [
        weights_to_mlx(oracle.random_weights(rng, (1, 24, K), 4, 64), "float16")
        for _ in range(2)
    ]
    matrices = [[a[0] for a in arrays] for arrays, _ in pairs]
    mx.eval(x, matrices)
    gate, up = (recorder.quantized_matmul(x, *arrays) for arrays in matrices)
    return x, gate, up, [w for _, w in pairs]


def test_gate_up_and_swiglu_are_one_launch(recorder, seen, rng):
    x, gate, up, (g, u) = gate_and_up(recorder, rng)
    y = recorder.gated_products(gate, up)
    assert recorder.node(y) == "NibbleSwigluMatmul"
    recorder.evaluate(y)
    assert seen == ["swiglu_f16_f16_b4_g64"]
    which = np.array([0])
    exact, allowed = tolerance.swiglu(to_numpy(x), g, u, which, "float16")
    tolerance.assert_close(to_numpy(y), exact, allowed)


def test_gate_and_up_of_more_rows_stay_two_products_in_one_launch(recorder, seen, rng):
    _, gate, up, _ = gate_and_up(recorder, rng, 3)
    assert recorder.gated_products(gate, up) is None
    recorder.evaluate(gate)
    recorder.evaluate(up)
    assert seen == ["joint_qmv_multi_f16_f16_b4_g64_r3"]


def test_what_is_computed_already_is_not_taken_over(recorder, seen, rng):
    _, gate, up, _ = gate_and_up(recorder, rng)
    recorder.evaluate(gate)
    recorder.evaluate(up)
    assert recorder.gated_products(gate, up) is None


def test_experts_gate_up_and_swiglu_are_one_launch(recorder, seen, rng):
    x = to_mlx(rng.standard_normal((1, 1, K)), "float16")
    stacks = [
        mx.quantize(to_mlx(rng.standard_normal((3, 24, K)), "float16"))
        for _ in range(2)
    ]
    lhs, rhs = mx.array([0, 0], mx.uint32), mx.array([2, 0], mx.uint32)
    mx.eval(x, stacks, lhs, rhs)
    gate, up = (recorder.gather_qmm(x, *w, lhs, rhs) for w in stacks)
    y = recorder.gated_products(gate, up)
    assert recorder.node(y) == "NibbleSwigluMatmul"

"""Activations, dense products, convolutions and recurrences against float64."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_nibble import _native, fast
from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.support.arrays import DTYPES, to_mlx, to_numpy
from tests.support.graph import node_names
from tests.support.tolerance import assert_close, bound
from tests.unit.ops.test_fast import EXAMPLES, dtypes, laid_out, rng_of

pytestmark = pytest.mark.skipif(_native.ext is None, reason="needs the extension")
SINGLE = UNIT_ROUNDOFF["float32"]
TINY = 2.0**-126


def sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def gelu(x):
    return np.vectorize(lambda v: v * math.erfc(-v / math.sqrt(2)) / 2)(x)


def gelu_approx(x):
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


ORACLES = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "gelu_approx": gelu_approx,
    "gelu_fast_approx": lambda x: x * sigmoid(1.702 * x),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
}
# Those whose results at infinity are infinite.
UNBOUNDED = sorted(ORACLES.keys() - {"tanh", "sigmoid"})


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_activations(data):
    rng, dtype = rng_of(data), data.draw(dtypes)
    kind = data.draw(st.sampled_from(sorted(ORACLES)))
    shape = (3, data.draw(st.integers(1, 70)))
    scale = data.draw(st.sampled_from([0.1, 1.0, 4.0]))
    x = laid_out(data, scale * rng.standard_normal(shape), dtype)
    up = to_mlx(rng.standard_normal(shape), dtype) if data.draw(st.booleans()) else None
    y = _native.ext.activation(kind, x, up)
    v = to_numpy(x).astype(np.float64)
    factor = 1.0 if up is None else to_numpy(up).astype(np.float64)
    exact = ORACLES[kind](v) * factor
    # The argument of an exponential is rounded a few times: an error relative to the
    # result of some units times the argument. A number below the smallest normal one
    # may become zero on the way.
    off = abs(exact) * (8 + 4 * abs(v) * (1 + v**2)) * SINGLE
    off = off + TINY * np.maximum(abs(v), 1) * np.maximum(abs(factor), 1)
    assert_close(to_numpy(y), exact, off + bound(exact, abs(exact), 4, dtype))


@pytest.mark.parametrize("kind", UNBOUNDED)
def test_activations_at_the_ends(kind):
    x = np.array([0, -0.0, 1e-30, -30, -100, 100, np.inf, np.nan], np.float32)
    y = to_numpy(_native.ext.activation(kind, mx.array(x)))
    assert (y[[0, 1]] == 0).all() and np.isnan(y[-1])
    assert abs(y[3]) < 1e-9 and y[4] == 0
    assert np.isinf(y[6]) and y[6] > 0
    assert y[5] == (100 if kind != "relu2" else 10_000)


@pytest.mark.parametrize("kind", ["tanh", "sigmoid"])
def test_bounded_activations_at_the_ends(kind):
    x = np.array([1e-30, -1e-4, 0, -100, 100, -np.inf, np.inf, np.nan], np.float32)
    y = to_numpy(_native.ext.activation(kind, mx.array(x)))
    exact = ORACLES[kind](x.astype(np.float64))
    # e^-100 is below the smallest number of float32.
    assert (abs(y - exact)[:-1] <= 8 * SINGLE * abs(exact[:-1]) + TINY).all()
    assert np.isnan(y[-1])


def test_gelu_loses_nothing_in_its_tail():
    x = np.linspace(-6, 0, 999).astype(np.float32)
    exact = gelu(x.astype(np.float64))
    y = to_numpy(_native.ext.activation("gelu", mx.array(x)))
    assert (abs(y - exact) <= 64 * SINGLE * abs(exact)).all()


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_clipped_swiglu(data):
    rng, dtype = rng_of(data), data.draw(dtypes)
    gate, up = (to_mlx(6 * rng.standard_normal((3, 37)), dtype) for _ in range(2))
    y = _native.ext.activation("swiglu_oai", gate, up, 1.702, 7.0)
    g = np.minimum(to_numpy(gate).astype(np.float64), 7)
    u = np.clip(to_numpy(up).astype(np.float64), -7, 7) + 1
    exact = u * g * sigmoid(1.702 * g)
    off = abs(exact) * (8 + 8 * abs(g)) * SINGLE + abs(g) * SINGLE
    assert_close(to_numpy(y), exact, off + bound(exact, abs(exact), 4, dtype))


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_layer_norm(data):
    rng, dtype = rng_of(data), data.draw(dtypes)
    D = data.draw(st.sampled_from([1, 7, 16, 33, 64, 384, 1025]))
    x = laid_out(data, rng.standard_normal((2, 3, D)) + 3, dtype)
    given_ = [to_mlx(rng.standard_normal(D), dtype) for _ in range(2)]
    weight, bias = (a if data.draw(st.booleans()) else None for a in given_)
    y = fast.layer_norm(x, weight, bias, 1e-5)
    assert y.dtype == mx.fast.layer_norm(x, weight, bias, 1e-5).dtype
    v = to_numpy(x).astype(np.float64)
    centred = v - v.mean(-1, keepdims=True)
    factor = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(1e-5))
    w = 1.0 if weight is None else to_numpy(weight).astype(np.float64)
    b = 0.0 if bias is None else to_numpy(bias).astype(np.float64)
    exact = centred * factor * w + b
    # The mean is off by its own roundings, which the factor enlarges.
    sizes = (abs(v) + abs(v).mean(-1, keepdims=True)) * factor * abs(w) + abs(b)
    assert_close(to_numpy(y), exact, bound(exact, sizes, D, dtype))


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_dense_products(data):
    rng, dtype = rng_of(data), data.draw(dtypes)
    weight_dtype = data.draw(dtypes)
    M = data.draw(st.sampled_from([1, 2, 3, 5, 8, 300]))
    N, K = data.draw(st.integers(1, 140)), data.draw(st.sampled_from([1, 9, 64, 1100]))
    x = laid_out(data, rng.standard_normal((M, K)), dtype)
    w = laid_out(data, rng.standard_normal((N, K)), weight_dtype)
    bias = to_mlx(rng.standard_normal(N), dtype) if data.draw(st.booleans()) else None
    y = _native.ext.dense_linear(x, w, bias)
    assert y.dtype == (x @ w.T).dtype and y.shape == (M, N)
    a, b = (to_numpy(each).astype(np.float64) for each in (x, w))
    added = 0.0 if bias is None else to_numpy(bias).astype(np.float64)
    exact, sizes = a @ b.T + added, abs(a) @ abs(b).T + abs(added)
    name = str(y.dtype).removeprefix("mlx.core.")
    assert_close(to_numpy(y), exact, bound(exact, sizes, K + 1, name))


def test_a_row_of_a_dense_product_has_the_same_bits_alone():
    mx.random.seed(0)
    x, w = mx.random.normal((40, 1100)), mx.random.normal((70, 1100))
    together = _native.ext.dense_linear(x, w)
    for count in (1, 2, 5):
        assert mx.array_equal(_native.ext.dense_linear(x[:count], w), together[:count])


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_depthwise_convolutions(data):
    rng, dtype = rng_of(data), data.draw(dtypes)
    B, T, C = (data.draw(st.integers(1, n)) for n in (2, 70, 140))
    taps = data.draw(st.sampled_from([1, 3, 4]))
    x = laid_out(data, rng.standard_normal((B, T + taps - 1, C)), dtype)
    w = to_mlx(rng.standard_normal((C, taps, 1)), dtype)
    y = fast.conv1d(x, w, groups=C)
    assert y.shape == (B, T, C) and y.dtype == x.dtype
    a, b = to_numpy(x).astype(np.float64), to_numpy(w).astype(np.float64)[..., 0]
    parts = [a[:, j : j + T] * b[:, j] for j in range(taps)]
    exact, sizes = sum(parts), sum(abs(p) for p in parts)
    assert_close(to_numpy(y), exact, bound(exact, sizes, taps, dtype))
    # SiLU of a convolution that waits is one node with it.
    silu = _native.ext.activation("silu", fast.conv1d(x, w, groups=C))
    exact_silu = ORACLES["silu"](exact)
    off = bound(exact_silu, abs(exact_silu) + 2 * sizes, taps + 8, dtype)
    assert_close(to_numpy(silu), exact_silu, off)


def recurrence(rule, q, k, v, decay, beta, state, mask, skip=0.0, a=None, b=None):
    """Return y [B, T, H, Dv] and the state by the definition, and error sizes."""
    B, T, H, Dv = v.shape
    s, size = state.copy(), abs(state)
    y, sizes = np.zeros_like(v), np.zeros_like(v)
    for t in range(T):
        d = decay[:, t]
        d = d[..., None, None] if d.ndim == 2 else d[..., None, :]
        left = s * d
        found = (s * a[:, t][..., None, :]).sum(-1) if a is not None else None
        if rule == "delta":
            change = (v[:, t] - (left * k[:, t][..., None, :]).sum(-1)) * beta[
                :, t, :, None
            ]
        elif rule == "add":
            change = v[:, t] * beta[:, t, :, None]
        else:
            change = v[:, t]
        new = left + change[..., None] * k[:, t][..., None, :]
        if found is not None:
            new = new + found[..., None] * b[:, t][..., None, :]
        keep = mask[:, t][:, None, None, None]
        s = np.where(keep, new, s)
        size = np.maximum(size, abs(s))
        y[:, t] = (
            np.where(keep[..., 0], (s * q[:, t][..., None, :]).sum(-1), 0)
            + skip * v[:, t]
        )
        sizes[:, t] = (size * abs(q[:, t][..., None, :])).sum(-1) + abs(skip * v[:, t])
    return y, s, sizes, size


def drawn(data):
    """Return random q, k [B, T, Hk, Dk], v, gates, a state and a mask."""
    rng, dtype = rng_of(data), data.draw(dtypes)
    B, T = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 2, 9, 70]))
    Hk, share = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    Dk, Dv = (data.draw(st.sampled_from([4, 16, 24, 33])) for _ in range(2))
    q, k = (
        to_mlx(rng.standard_normal((B, T, Hk, Dk)) / math.sqrt(Dk), dtype)
        for _ in range(2)
    )
    v = to_mlx(rng.standard_normal((B, T, Hk * share, Dv)), dtype)
    state = None
    if data.draw(st.booleans()):
        state = mx.array(
            rng.standard_normal((B, Hk * share, Dv, Dk)).astype(np.float32)
        )
    mask = None
    if data.draw(st.booleans()):
        mask = mx.array(rng.random((B, T)) < 0.7)
    return rng, dtype, q, k, v, state, mask


def wide(a, share=1):
    return np.repeat(to_numpy(a).astype(np.float64), share, axis=2)


def start(v, q, state, mask):
    B, T, H, Dv = v.shape
    s = np.zeros((B, H, Dv, q.shape[3])) if state is None else to_numpy(state)
    return (
        s.astype(np.float64),
        np.ones((B, T), bool) if mask is None else to_numpy(mask).astype(bool),
    )


def check(found, exact, dtype, terms):
    y, new_state, sizes, size = exact
    # Errors of a state decay with it: each position adds those of one sum.
    assert_close(to_numpy(found[0]), y, bound(y, sizes, terms, dtype))
    off = bound(new_state, size, terms, "float32")
    assert_close(to_numpy(found[1]), new_state, off)


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_gated_delta(data):
    rng, dtype, q, k, v, state, mask = drawn(data)
    B, T, H, _ = v.shape
    share = H // q.shape[2]
    gates = (B, T, H) if data.draw(st.booleans()) else (B, T, H, q.shape[3])
    g = mx.array((0.2 + 0.7 * rng.random(gates)).astype(np.float32))
    beta = to_mlx(rng.random((B, T, H)), dtype)
    found = _native.ext.gated_delta(q, k, v, g, beta, state, mask)
    assert found[0].dtype == q.dtype and found[1].dtype == mx.float32
    s, seen = start(v, q, state, mask)
    exact = recurrence(
        "delta",
        wide(q, share),
        wide(k, share),
        wide(v),
        to_numpy(g).astype(np.float64),
        to_numpy(beta).astype(np.float64),
        s,
        seen,
    )
    check(found, exact, dtype, 40 * q.shape[3])


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_state_space(data):
    rng, dtype, q, k, v, state, mask = drawn(data)
    B, T, H, _ = v.shape
    share = H // q.shape[2]
    dt = to_mlx(rng.standard_normal((B, T, H)), dtype)
    bias, log_rates, skip = (
        mx.array(rng.standard_normal(H).astype(np.float32)) for _ in range(3)
    )
    found = _native.ext.state_space(
        v, log_rates, k, q, skip, dt, bias, (0.01, 2.0), state, mask
    )
    z = to_numpy(dt).astype(np.float64) + to_numpy(bias).astype(np.float64)
    step = np.clip(np.logaddexp(z, 0), np.float32(0.01), 2)
    decay = np.exp(-np.exp(to_numpy(log_rates).astype(np.float64)) * step)
    s, seen = start(v, q, state, mask)
    exact = recurrence(
        "add",
        wide(q, share),
        wide(k, share),
        wide(v),
        decay,
        step,
        s,
        seen,
        to_numpy(skip).astype(np.float64)[:, None],
    )
    check(found, exact, dtype, 40 * q.shape[3])


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_rwkv7(data):
    rng, dtype = rng_of(data), data.draw(dtypes)
    B, T, H, D = 2, data.draw(st.sampled_from([1, 5, 70])), 2, 16
    r, k, a, b = (
        to_mlx(rng.standard_normal((B, T, H, D)) / math.sqrt(D) / 2, dtype)
        for _ in range(4)
    )
    v = to_mlx(rng.standard_normal((B, T, H, D)), dtype)
    w = to_mlx(0.2 + 0.5 * rng.random((B, T, H, D)), dtype)
    state = mx.array(rng.standard_normal((B, H, D, D)).astype(np.float32))
    found = _native.ext.rwkv7(r, w, k, v, a, b, state)
    s, seen = start(v, r, state, None)
    exact = recurrence(
        "replace", wide(r), wide(k), wide(v), wide(w), None, s, seen, 0.0,
        wide(a), wide(b),
    )  # fmt: skip
    check(found, exact, dtype, 40 * D)


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_selective_scan(data):
    rng, dtype = rng_of(data), data.draw(dtypes)
    B, T, C = 2, data.draw(st.sampled_from([1, 3, 70])), data.draw(st.integers(1, 130))
    N = data.draw(st.sampled_from([1, 8, 16, 17]))
    delta = to_mlx(rng.random((B, T, C)), dtype)
    x = to_mlx(rng.standard_normal((B, T, C)), dtype)
    b, c = (to_mlx(rng.standard_normal((B, T, N)), dtype) for _ in range(2))
    rates = mx.array((-3 * rng.random((C, N))).astype(np.float32))
    skip = mx.array(rng.standard_normal(C).astype(np.float32))
    state = None
    if data.draw(st.booleans()):
        state = mx.array(rng.standard_normal((B, C, N)).astype(np.float32))
    y, new_state = _native.ext.selective_scan(delta, x, b, c, rates, skip, state)
    d, xs, bs, cs, A, D = (
        to_numpy(a).astype(np.float64) for a in (delta, x, b, c, rates, skip)
    )
    s = np.zeros((B, C, N)) if state is None else to_numpy(state).astype(np.float64)
    size, exact, sizes = abs(s), np.zeros((B, T, C)), np.zeros((B, T, C))
    for t in range(T):
        s = np.exp(d[:, t, :, None] * A) * s
        s = s + (d[:, t] * xs[:, t])[..., None] * bs[:, t, None]
        size = np.maximum(size, abs(s))
        exact[:, t] = (s * cs[:, t, None]).sum(-1) + D * xs[:, t]
        sizes[:, t] = (size * abs(cs[:, t, None])).sum(-1) + abs(D * xs[:, t])
    # A decay is off by some units times its exponent, at each position.
    terms = 40 * (N + 4)
    assert_close(to_numpy(y), exact, bound(exact, sizes, terms, dtype))
    assert_close(to_numpy(new_state), s, bound(s, size, terms, "float32"))


def test_what_our_kernels_do_not_compute_is_left_to_the_caller():
    q = mx.ones((1, 2, 2, 8))
    g = beta = mx.ones((1, 2, 2))
    call = _native.ext.gated_delta
    assert call(q, q, q, g, beta, None, None) is not None
    assert call(q.astype(mx.int32), q, q, g, beta, None, None) is None
    assert call(q, q, q, g[:, :1], beta, None, None) is None
    assert call(q, q, q, g, beta, mx.ones((1, 2, 8, 8), mx.float16), None) is None
    assert call(q, q, q, g, beta, None, mx.ones((1, 2))) is None
    assert call(q, q, q, g, beta, None, None, stream=mx.cpu) is not None

    def loss(q):
        assert call(q, q, q, g, beta, None, None) is None
        return q.sum()

    mx.grad(loss)(q)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_gradients_are_those_of_mlx(dtype):
    mx.random.seed(3)
    x = to_mlx(np.random.default_rng(0).standard_normal((4, 32)), dtype)
    w = to_mlx(np.random.default_rng(1).standard_normal((16, 32)), dtype)
    ours = mx.grad(lambda x: (_native.ext.dense_linear(x, w) ** 2).sum())(x)
    theirs = mx.grad(lambda x: ((x @ w.T) ** 2).sum())(x)
    near = 1e-4 if dtype == "float32" else 0.1
    assert mx.allclose(ours, theirs, rtol=near, atol=near)


def gathered(data, rng, dtype, weight_dtype):
    """Draw products that choose their matrices: arrays, result and bound."""
    experts, rows = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    M, K = data.draw(st.sampled_from([1, 1, 3])), data.draw(st.sampled_from([1, 9, 70]))
    N = data.draw(st.sampled_from([1, 5, 64, 131]))
    B = data.draw(st.sampled_from([1, 7, 300]))
    x = laid_out(data, rng.standard_normal((rows, M, K)), dtype)
    w = laid_out(data, rng.standard_normal((experts, N, K)), weight_dtype)
    rhs = rng.integers(0, experts, B)
    rhs = np.sort(rhs) if data.draw(st.booleans()) else rhs
    lhs = rng.integers(0, rows, B)
    a, b = (to_numpy(each).astype(np.float64) for each in (x, w))
    exact = a[lhs] @ b[rhs].swapaxes(1, 2)
    name = str(mx.result_type(x, w)).removeprefix("mlx.core.")
    sizes = abs(a[lhs]) @ abs(b[rhs]).swapaxes(1, 2)
    return x, w, mx.array(lhs), mx.array(rhs), exact, bound(exact, sizes, K, name)


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_products_of_experts_that_are_not_quantized(data):
    rng, dtype = rng_of(data), data.draw(dtypes)
    weight_dtype = data.draw(st.sampled_from(["float32", dtype]))
    x, w, lhs, rhs, exact, allowed = gathered(data, rng, dtype, weight_dtype)
    y = fast.gather_mm(x, w.swapaxes(-1, -2), lhs, rhs)
    assert node_names(y)["NibbleGatherMM"] == 1 and y.shape == exact.shape
    assert y.dtype == mx.result_type(x, w)
    assert_close(to_numpy(y), exact, allowed)


def test_indices_of_experts_that_are_not_given():
    x, w = mx.random.normal((2, 3, 4, 8)), mx.random.normal((3, 5, 8))
    y = fast.gather_mm(x, w.swapaxes(-1, -2))
    assert mx.allclose(y, x @ w.swapaxes(-1, -2), rtol=1e-4, atol=1e-5)
    y = fast.gather_mm(x[:, :1], w.swapaxes(-1, -2), rhs_indices=mx.array([[2], [0]]))
    expected = x[:, :1] @ mx.take(w, mx.array([[2], [0]]), axis=0).swapaxes(-1, -2)
    assert mx.allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_an_index_of_a_dense_expert_beyond_the_last_counts_as_the_last():
    x, w = mx.random.normal((1, 1, 8)), mx.random.normal((3, 5, 8))
    y = fast.gather_mm(x, w.swapaxes(-1, -2), rhs_indices=mx.array([2, 7]))
    assert mx.array_equal(y[0], y[1])


def test_matrices_of_experts_that_do_not_lie_transposed_are_mlxs():
    x, w = mx.random.normal((2, 1, 8)), mx.random.normal((3, 8, 5))
    mx.eval(x, w)
    y = fast.gather_mm(x, w, rhs_indices=mx.array([2, 0]))
    assert "NibbleGatherMM" not in node_names(y)
    assert mx.allclose(y, x @ w[mx.array([2, 0])], rtol=1e-4, atol=1e-5)


def test_a_row_of_a_dense_expert_has_the_same_bits_alone():
    x, w = mx.random.normal((300, 1, 96)), mx.random.normal((4, 40, 96))
    rhs = mx.arange(300) % 4
    y = fast.gather_mm(x, w.swapaxes(-1, -2), rhs_indices=rhs)
    alone = fast.gather_mm(x[9:10], w.swapaxes(-1, -2), rhs_indices=rhs[9:10])
    assert mx.array_equal(alone[0], y[9])


def test_gradients_and_vmap_of_dense_experts():
    x, w = mx.random.normal((6, 1, 8)), mx.random.normal((3, 5, 8))
    rhs = mx.array([0, 2, 1, 1, 0, 2])

    def loss(operation):
        return lambda x, w: (
            operation(x, w.swapaxes(-1, -2), rhs_indices=rhs).square().sum()
        )

    for found, expected in zip(
        mx.grad(loss(fast.gather_mm), (0, 1))(x, w),
        mx.grad(loss(mx.gather_mm), (0, 1))(x, w),
        strict=True,
    ):
        assert mx.allclose(found, expected, rtol=1e-4, atol=1e-5)

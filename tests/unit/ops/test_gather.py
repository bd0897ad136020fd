"""gather_qmm as a drop-in: arguments, results and errors as in MLX."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_nibble import _native, ops
from mlx_nibble.formats import SUPPORTED_BITS
from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.support import oracle
from tests.support.arrays import DTYPES, to_mlx, to_numpy, weights_to_mlx
from tests.support.mlx_formats import OTHER_FORMATS
from tests.support.tolerance import (
    assert_close,
    bound,
    integer_bound,
    integers,
    on_cuda,
    weight_dtype,
)


def make(rng, w_shape, bits=4, group_size=64, scale_dtype="float16"):
    w = oracle.random_weights(rng, w_shape, bits, group_size)
    return weights_to_mlx(w, scale_dtype)


def check(y, x, w, lhs, rhs, transpose=True, scale_dtype="float16"):
    """Compare with the oracle: x [rows, M, in], w [experts, N, K]."""
    name = str(y.dtype).removeprefix("mlx.core.")
    x = to_numpy(x).reshape(-1, *x.shape[-2:])[lhs]
    w_hat, magnitude = (
        a.reshape(-1, *a.shape[-2:])[rhs] for a in (w.dequantize(), w.magnitude())
    )
    exact = oracle.matmul(x, w_hat, transpose)
    magnitude = oracle.matmul(abs(x), magnitude, transpose)
    rounded = weight_dtype(name, transpose, scale_dtype=scale_dtype)
    allowed = bound(exact, magnitude, x.shape[-1], name, rounded)
    if transpose:
        off = integer_bound(x, w_hat, w.group_size, integers(name))
        allowed += off * (1 + UNIT_ROUNDOFF[name])
    assert_close(to_numpy(y), exact, allowed)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    B=st.sampled_from([0, 1, 3, 16, 70]),
    M=st.one_of(st.just(1), st.integers(1, 40)),
    N=st.sampled_from([1, 9, 33]),
    groups=st.integers(1, 3),
    experts=st.integers(1, 70),  # some unused
    bits=st.sampled_from(SUPPORTED_BITS),
    dtype=st.sampled_from(list(DTYPES)),
    in_order=st.booleans(),
    transpose=st.booleans(),
)
def test_products_agree_with_the_oracle(
    seed, B, M, N, groups, experts, bits, dtype, in_order, transpose
):
    rng = np.random.default_rng(seed)
    q, w = make(rng, (experts, N, 32 * groups), bits, 32)
    x = to_mlx(rng.standard_normal((5, M, 32 * groups if transpose else N)), dtype)
    lhs, rhs = rng.integers(0, 5, B), rng.integers(0, experts, B)
    rhs = np.sort(rhs) if in_order else rhs
    y = ops.gather_qmm(
        x,
        *q,
        mx.array(lhs),
        mx.array(rhs),
        transpose,
        32,
        bits,
        sorted_indices=in_order,
    )
    assert y.dtype == DTYPES[dtype]
    assert y.shape == (B, M, N if transpose else 32 * groups)
    check(y, x, w, lhs, rhs, transpose)


@pytest.mark.parametrize("M", [8, 15, 38])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_wide_result_of_few_weight_rows(rng, bits, M):
    # The sums of all columns are too many for one chunk.
    q, w = make(rng, (1, 2, 28 * 128), bits, 128)
    x = to_mlx(rng.standard_normal((2, M, 2)), "float16")
    lhs, rhs = np.array([1, 0, 1]), np.zeros(3, int)
    y = ops.gather_qmm(
        x, *q, mx.array(lhs), mx.array(rhs), False, group_size=128, bits=bits
    )
    check(y, x, w, lhs, rhs, False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_rows_of_long_groups(rng, dtype):
    # CUDA refuses MLX's own kernel for them, which computes in float32.
    q, w = make(rng, (5, 25, 128), 2, 128)
    x = to_mlx(rng.standard_normal((1, 38, 128)), dtype)
    lhs, rhs = np.array([0]), np.array([1])
    y = ops.gather_qmm(x, *q, mx.array(lhs), mx.array(rhs), group_size=128, bits=2)
    check(y, x, w, lhs, rhs)


def indices(*shape):
    return mx.array(np.arange(np.prod(shape)).reshape(shape) % 3)


# MLX's result for (batch of x, batch of w, lhs, rhs).
CALLS = [
    ((6,), (4,), None, indices(6)),
    ((), (4,), None, indices(2)),
    ((4,), (4,), indices(4), None),
    ((6,), (4,), indices(3, 1), indices(2)),
    ((6,), (), indices(3), None),
    ((2, 3), (4, 2), indices(5, 1), indices(1, 7)),
    ((6,), (4,), indices(3).astype(mx.int64), indices(3).astype(mx.int8)),
    ((1, 1), (4,), None, indices(2, 3)),
    ((3,), (3,), None, None),
]


def chosen(matrices, index):
    """Return the matrices of these indices; all of them without indices."""
    if index is None:
        return matrices
    return matrices.reshape(-1, *matrices.shape[-2:])[index]


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize(("x_batch", "w_batch", "lhs", "rhs"), CALLS)
def test_indices_mean_what_they_mean_to_mlx(x_batch, w_batch, lhs, rhs, transpose):
    q = mx.quantize(mx.random.normal((*w_batch, 32, 64)))
    x = mx.random.normal((*x_batch, 2, 64 if transpose else 32))
    ours = ops.gather_qmm(x, *q, lhs, rhs, transpose)
    if on_cuda():  # MLX's products of a batch are wrong there, and some are missing
        w = mx.dequantize(*q)
        w = w.swapaxes(-1, -2) if transpose else w
        theirs = chosen(x, lhs) @ chosen(w, rhs)
    else:
        theirs = mx.gather_qmm(x, *q, lhs, rhs, transpose)
    assert ours.shape == theirs.shape
    assert mx.allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_mixture_s_layers_as_mlx_lm_calls_them(rng):
    """Return several experts a token: unsorted for few tokens, sorted from 64 on."""
    q, w = make(rng, (8, 48, 64))
    for tokens in (3, 40):
        x = to_mlx(rng.standard_normal((tokens, 1, 1, 64)), "bfloat16")
        chosen = rng.integers(0, 8, (tokens, 2))
        y = ops.gather_qmm(x, *q, rhs_indices=mx.array(chosen))
        assert y.shape == (tokens, 2, 1, 48)
        lhs = np.repeat(np.arange(tokens), 2)
        flat = y.reshape(-1, 1, 48)
        check(flat, x, w, lhs, chosen.reshape(-1))
        order = np.argsort(chosen.reshape(-1), kind="stable")
        by_expert = x.reshape(tokens, 1, 64)[mx.array(order // 2)]
        rhs = mx.array(chosen.reshape(-1)[order])
        y = ops.gather_qmm(by_expert, *q, rhs_indices=rhs, sorted_indices=True)
        # On a CPU the arithmetic is the same, in any order.
        assert mx.array_equal(y, flat[mx.array(order)])


def test_strided_operands(rng):
    q, w = make(rng, (4, 96, 128))
    wide = to_mlx(rng.standard_normal((128, 3, 6)), "float32")
    x = wide.transpose(2, 1, 0)[::2]
    rhs = np.array([3, 1, 0])
    backwards = mx.array(rhs[::-1].copy())[::-1]
    check(ops.gather_qmm(x, *q, rhs_indices=backwards), x, w, np.arange(3), rhs)
    half = oracle.Weights(w.words[::2], w.scales[::2], w.biases[::2], 4, 64)
    y = ops.gather_qmm(x, *[a[::2] for a in q], rhs_indices=mx.array([1, 0, 1]))
    check(y, x, half, np.arange(3), np.array([1, 0, 1]))


def test_types(rng):
    q, w = make(rng, (4, 48, 64), scale_dtype="bfloat16")
    rhs = mx.array([2, 0])
    for dtype in DTYPES:
        x = to_mlx(rng.standard_normal((2, 1, 64)), dtype)
        y = ops.gather_qmm(x, *q, rhs_indices=rhs)
        assert y.dtype == DTYPES[dtype]
        check(y, x, w, np.arange(2), np.array([2, 0]))
    x = mx.array(rng.integers(-3, 4, (2, 1, 64)))
    assert ops.gather_qmm(x, *q, rhs_indices=rhs).dtype == mx.bfloat16


@pytest.mark.cpu
@pytest.mark.parametrize(("mode", "bits", "group_size"), OTHER_FORMATS)
def test_what_only_a_cpu_supports(mode, bits, group_size):
    q = mx.quantize(mx.random.normal((3, 64, 128)), group_size, bits, mode)
    x = mx.random.normal((2, 1, 128))
    kwargs = {"group_size": group_size, "bits": bits, "mode": mode}
    kwargs |= {"rhs_indices": mx.array([2, 0])}
    ours, theirs = (f(x, *q, **kwargs) for f in (ops.gather_qmm, mx.gather_qmm))
    assert mx.allclose(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.cpu
def test_symmetric_biases_are_not_read(rng):
    w, scales, _ = make(rng, (4, 48, 64))[0]
    x = to_mlx(rng.standard_normal((3, 1, 64)), "float32")
    rhs = mx.array([3, 3, 1])
    nothing = mx.full(scales.shape, mx.nan, scales.dtype)
    y = ops.gather_qmm(x, w, scales, nothing, rhs_indices=rhs, symmetric=True)
    assert mx.array_equal(y, ops.gather_qmm(x, w, scales, -8 * scales, rhs_indices=rhs))


BAD = [
    (dict(x=(64,)), "x must have two or more dimensions"),
    (dict(x=(3, 1, 63)), r"the last dimension of x must be 64 .* \(3,1,63\)"),
    (dict(rhs=mx.array([0.0, 1.0, 0.0])), "indices must be integers .* float32"),
    (dict(rhs=mx.array([0, 1])), "broadcast"),
    (dict(biases=None), "needs biases but got none"),
    (dict(global_scale=mx.array(1.0)), "[Gg]lobal scale"),
    (dict(bits=0), "bits and group_size must be positive but are 0 and 64"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_one_clear_error(change, message):
    w, scales, biases = mx.quantize(mx.random.normal((4, 32, 64)))
    x = mx.zeros(change.get("x", (3, 1, 64)))
    with pytest.raises(ValueError, match=message):
        ops.gather_qmm(
            x,
            w,
            scales,
            change.get("biases", biases),
            rhs_indices=change.get("rhs", mx.array([0, 1, 2])),
            global_scale=change.get("global_scale"),
            bits=change.get("bits"),
            lhs_indices=mx.array([0, 1, 2]) if "rhs" in change else None,
        )


def test_more_matrices_than_an_index_counts_are_an_error():
    q = mx.quantize(mx.random.normal((2, 32, 64)))
    x = mx.broadcast_to(mx.zeros((1, 1, 1, 64)), (2**16, 2**16, 1, 64))
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 .* \(65536,65536,1,64\)"):
        ops.gather_qmm(x, *q, rhs_indices=mx.array([0]))


def test_what_mlx_computes_may_be_empty():
    q = mx.quantize(mx.random.normal((3, 64, 128)), 32, 4, "mxfp4")
    y = ops.gather_qmm(
        mx.zeros((2, 0, 128)),
        *q,
        rhs_indices=mx.array([2, 0]),
        group_size=32,
        mode="mxfp4",
    )
    assert np.array(y).shape == (2, 0, 64)


def test_unknown_activations_are_an_error():
    q = mx.quantize(mx.zeros((1, 32, 64)))
    with pytest.raises(ValueError, match=r"\[gather_qmm\] activations must be"):
        ops.gather_qmm(mx.zeros((1, 64)), *q, activations="int4")


def test_without_the_extension_it_is_mlx_own(monkeypatch):
    monkeypatch.setattr(_native, "ext", None)
    q = mx.quantize(mx.random.normal((4, 32, 64)))
    x = mx.random.normal((3, 1, 64))
    rhs = mx.array([0, 1, 2])
    assert mx.array_equal(
        ops.gather_qmm(x, *q, rhs_indices=rhs), mx.gather_qmm(x, *q, rhs_indices=rhs)
    )


# ---- transforms ---------------------------------------------------------

TOLERANCE = dict(rtol=1e-4, atol=1e-3)


def dense(x, w, scales, biases, lhs, rhs, transpose):
    codes = mx.dequantize(w, mx.ones_like(scales), mx.zeros_like(biases))
    w_hat = codes * mx.repeat(scales, 64, -1) + mx.repeat(biases, 64, -1)
    w_hat = w_hat.swapaxes(-1, -2) if transpose else w_hat
    return x.flatten(0, -3)[lhs] @ w_hat.flatten(0, -3)[rhs]


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("M", [1, 3])
def test_gradients_are_those_of_the_dense_products(transpose, M):
    w, scales, biases = mx.quantize(mx.random.normal((2, 2, 32, 64)))
    x = mx.random.normal((5, M, 64 if transpose else 32))
    lhs, rhs = mx.array([[4, 0], [0, 1], [4, 3]]), mx.array([[1, 1], [0, 3], [3, 0]])
    cotangent = mx.random.normal((3, 2, M, 32 if transpose else 64))

    def gradients(f):
        return mx.vjp(f, [x, scales, biases], [cotangent])[1]

    ours = gradients(lambda x, s, b: ops.gather_qmm(x, w, s, b, lhs, rhs, transpose))
    theirs = gradients(lambda x, s, b: dense(x, w, s, b, lhs, rhs, transpose))
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert mx.allclose(a, b, **TOLERANCE)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_tangents_are_directional_derivatives(which, symmetric):
    w, scales, biases = mx.quantize(mx.random.normal((4, 32, 64)))
    inputs = [mx.random.normal((3, 1, 64)), scales, biases]
    inputs[2] = -8 * scales if symmetric else biases
    lhs, rhs = mx.array([2, 0, 0]), mx.array([1, 1, 3])
    chosen = [inputs[i] for i in which]
    tangents = [mx.random.normal(a.shape) for a in chosen]

    def run(op):
        def f(*args):
            full = list(inputs)
            for i, a in zip(which, args, strict=True):
                full[i] = a
            return op(full[0], w, full[1], full[2])

        return mx.jvp(f, chosen, tangents)[1][0]

    ours = run(
        lambda *a: ops.gather_qmm(
            *a, lhs_indices=lhs, rhs_indices=rhs, symmetric=symmetric
        )
    )
    assert mx.allclose(ours, run(lambda *a: dense(*a, lhs, rhs, True)), **TOLERANCE)


@pytest.mark.cpu
@pytest.mark.parametrize("argument", [1, 5])
def test_integers_have_no_gradient(argument):
    w, scales, biases = mx.quantize(mx.random.normal((4, 32, 64)))
    inputs = [mx.ones((3, 1, 64)), w, scales, biases]
    inputs += [mx.array([0, 1, 2]), mx.array([0, 1, 2])]
    with pytest.raises(ValueError, match="integers"):
        mx.grad(lambda *a: ops.gather_qmm(*a).sum(), argnums=argument)(*inputs)


@pytest.mark.parametrize(
    "axes",
    [
        (0, None, None, None),
        (1, None, None, 0),
        (None, None, 1, None),
        (None, 0, None, None),
        (0, 0, 0, 0),
        (2, 1, None, 1),
    ],
    ids=str,
)
def test_vmap_is_a_loop(axes):
    """Map over x, all of w, lhs and rhs."""
    size = 3
    shapes = [(4, 2, 64), (5, 32, 64), (6,), (6,)]
    rng = np.random.default_rng(0)

    def full(i):
        shape = list(shapes[i])
        if axes[i] is not None:
            shape.insert(axes[i], size)
        if i < 2:
            return mx.array(rng.standard_normal(shape).astype(np.float32))
        return mx.array(rng.integers(0, 4, shape))

    x, dense_w, lhs, rhs = (full(i) for i in range(4))
    q = mx.quantize(dense_w)
    mapped = mx.vmap(
        lambda *a: ops.gather_qmm(*a), in_axes=(axes[0], *[axes[1]] * 3, *axes[2:])
    )(x, *q, lhs, rhs)

    def at(a, axis, i):
        return a if axis is None else mx.take(a, i, axis)

    loop = mx.stack(
        [
            ops.gather_qmm(
                at(x, axes[0], i),
                *[at(a, axes[1], i) for a in q],
                at(lhs, axes[2], i),
                at(rhs, axes[3], i),
            )
            for i in range(size)
        ]
    )
    assert mapped.shape == loop.shape
    assert mx.allclose(mapped, loop, **TOLERANCE)


@pytest.mark.parametrize("shapeless", [False, True])
def test_compile(shapeless):
    q = mx.quantize(mx.random.normal((4, 32, 64)))
    mx.eval(q)

    # Default indices count the matrices that exist when the graph is built.
    def plain(x, lhs, rhs):
        return mx.tanh(ops.gather_qmm(x + 1, *q, lhs, rhs)) * 2

    compiled = mx.compile(plain, shapeless=shapeless)
    for rows in (1, 3, 40):
        x = mx.random.normal((rows, 1, 64))
        lhs = mx.arange(rows)
        assert mx.allclose(
            compiled(x, lhs, lhs % 4), plain(x, lhs, lhs % 4), **TOLERANCE
        )

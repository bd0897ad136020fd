"""NaN, infinity and extreme numbers go through as in MLX's float32 form."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble import fast, ops
from tests.support import oracle, tolerance
from tests.support.arrays import DTYPES, to_mlx, to_numpy, weights_to_mlx

NAN, INF = np.nan, np.inf
LARGEST = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}
# Where each is put, in a row: one element, or all of them.
SPECIAL = {
    "nan": (NAN, 3),
    "inf": (INF, 3),
    "-inf": (-INF, 3),
    "inf and -inf": ((INF, -INF), slice(3, 5)),
    "nan and inf": ((NAN, INF), slice(3, 5)),
    "nan at the end": (NAN, -1),
    "all nan": (NAN, slice(None)),
    "all inf": (INF, slice(None)),
    "all -inf": (-INF, slice(None)),
    "largest": ("largest", 3),
    "-largest": ("-largest", 3),
    "subnormal": (1e-40, slice(None)),
    "-0": (-0.0, slice(None)),
}
special = pytest.mark.parametrize("special", SPECIAL)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def put(a: np.ndarray, row: tuple[int, ...], special: str, dtype: str) -> np.ndarray:
    """Return the array with special numbers in one row."""
    value, at = SPECIAL[special]
    if isinstance(value, str):
        value = LARGEST[dtype] * (-1 if value[0] == "-" else 1)
    a = a.astype(np.float32)
    if a[row].size > (at.stop or 0 if isinstance(at, slice) else at):
        a[row][at] = value
    return a


def kinds(a: mx.array) -> np.ndarray:
    """Return 0 for finite numbers, 1 and -1 for infinities, 2 for NaN."""
    a = to_numpy(a)
    return np.select([np.isnan(a), a == INF, a == -INF], [2, 1, -1], 0)


def check(ours: mx.array, theirs: mx.array, dtype: str) -> None:
    """Compare with a float32 result that is rounded to the type."""
    np.testing.assert_array_equal(kinds(ours), kinds(theirs.astype(DTYPES[dtype])))


def wide(*arrays: mx.array) -> list[mx.array]:
    return [a.astype(mx.float32) for a in arrays]


@special
@dtypes
def test_logsumexp(rng, special, dtype):
    for D in (5, 16, 33, 300, 40_000):
        x = to_mlx(put(rng.standard_normal((3, D)), (1,), special, dtype), dtype)
        check(fast.logsumexp(x, -1), mx.logsumexp(*wide(x), -1), dtype)


@special
@dtypes
def test_rms_norm(rng, special, dtype):
    for D in (5, 64, 300):
        x = to_mlx(put(rng.standard_normal((3, D)), (1,), special, dtype), dtype)
        weight = to_mlx(rng.standard_normal(D), dtype)
        theirs = mx.fast.rms_norm(*wide(x, weight), 1e-5)
        check(fast.rms_norm(x, weight, 1e-5), theirs, dtype)


@special
@dtypes
@pytest.mark.parametrize("traditional", [False, True])
def test_rope(rng, special, dtype, traditional):
    x = rng.standard_normal((1, 2, 3, 32))
    x = to_mlx(put(x, (0, 1, 1), special, dtype), dtype)
    form = dict(traditional=traditional, base=1e4, scale=1.0, offset=0)
    theirs = mx.fast.rope(*wide(x), 32, **form)
    check(fast.rope(x, 32, **form), theirs, dtype)


@special
@dtypes
@pytest.mark.parametrize("which", [0, 1])
def test_swiglu(rng, special, dtype, which):
    pair = [rng.standard_normal((3, 37)) for _ in range(2)]
    pair[which] = put(pair[which], (1,), special, dtype)
    gate, up = (to_mlx(a, dtype) for a in pair)
    g, u = wide(gate, up)
    check(fast.swiglu(gate, up), g * mx.sigmoid(g) * u, dtype)


def test_swiglu_of_a_large_negative_gate_is_zero():
    gate = mx.array([-80.0, -88.3, -89.0, -100.0, -1e10, -LARGEST["float32"]])
    y = fast.swiglu(gate, mx.full(gate.shape, 1e10))
    assert abs(y[:2]).min() > 0
    assert mx.array_equal(y[2:], mx.zeros(4))


# L, S, D: one query, one block, several blocks, transposed keys, and split keys.
SHAPES = [(1, 5, 16), (4, 4, 16), (30, 40, 16), (30, 150, 24), (130, 130, 64)]
SHAPES += [(1, 1500, 32)]


@pytest.mark.cpu
@special
@pytest.mark.parametrize("where", ["q", "k", "first v", "last v"])
def test_attention(rng, special, where):
    for shape in SHAPES:
        for mask in (None, "causal", "bool", "added", "sinks"):
            check_attention(rng, special, where, mask, shape)


def check_attention(rng, special, where, mask, shape):
    L, S, D = shape
    dtype = "float32"
    q, k, v = (rng.standard_normal((1, 2, n, D)) for n in (L, S, S))
    row = {"q": L // 2, "k": 0, "first v": 0, "last v": S - 1}[where]
    arrays = dict(zip("qkv", (q, k, v), strict=True))
    arrays[where[-1]] = put(arrays[where[-1]], (0, 0, row), special, dtype)
    q, k, v = (to_mlx(a, dtype) for a in arrays.values())
    form = {"scale": 0.1, "mask": mask}
    if mask == "sinks":
        form = {"scale": 0.1, "sinks": mx.array([0.5, -1.0])}
    elif mask in ("bool", "added"):
        seen = mx.array(rng.random((L, S)) < 0.8) | (mx.arange(S) == 1)
        form["mask"] = seen if mask == "bool" else mx.where(seen, 0.5, -mx.inf)
    ours = fast.scaled_dot_product_attention(q, k, v, **form)
    if mask in ("causal", "bool"):
        if mask == "causal":
            seen = mx.tri(L, S, S - L, dtype=mx.bool_)
        # MLX's CPU operation puts a finite number for -infinity here.
        scores = mx.where(seen, (0.1 * q) @ k.swapaxes(-1, -2), -mx.inf)
        theirs = mx.softmax(scores, -1) @ v
    else:
        theirs = mx.fast.scaled_dot_product_attention(q, k, v, **form)
    check(ours, theirs, dtype)


@pytest.mark.cpu
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_in_16_bits(rng, where, value, dtype):
    arrays = {name: rng.standard_normal((1, 1, 9, 32)) for name in "qkv"}
    arrays[where][0, 0, 4, 3] = value
    arrays = [to_mlx(a, dtype) for a in arrays.values()]
    ours = fast.scaled_dot_product_attention(*arrays, scale=0.1, mask="causal")
    form = {"scale": 0.1, "mask": "causal"}
    theirs = mx.fast.scaled_dot_product_attention(*wide(*arrays), **form)
    check(ours, theirs, dtype)


@pytest.mark.cpu
@pytest.mark.parametrize("S", [5, 300, 2000])
@pytest.mark.parametrize("L", [1, 3])
def test_a_mean_of_the_largest_numbers_is_finite(L, S):
    q, k = mx.zeros((1, 1, L, 16)), mx.zeros((1, 1, S, 16))
    large = mx.full((1, 1, S, 16), LARGEST["float32"] / 2)
    y = fast.scaled_dot_product_attention(q, k, large, scale=1.0)
    assert mx.allclose(y, large[:, :, :L], rtol=1e-6)


@pytest.mark.cpu
def test_a_query_that_sees_no_key_gives_zeros_beside_an_infinite_value():
    q, v = mx.zeros((1, 1, 1, 16)), mx.ones((1, 1, 1, 16))
    v[..., 3] = np.inf
    mask = mx.zeros((1, 1), mx.bool_)
    y = fast.scaled_dot_product_attention(q, q, v, scale=1.0, mask=mask)
    assert np.isnan(y[0, 0, 0, 3].item()) and mx.isnan(y).sum() == 1


@pytest.mark.cpu
def test_an_infinite_value_leaves_small_ones_alone():
    values = mx.array([np.inf, 1e-40, LARGEST["float32"], -np.inf] * 4)
    v = mx.broadcast_to(values, (1, 1, 3, 16))
    y = fast.scaled_dot_product_attention(v * 0, mx.zeros(v.shape), v, scale=1.0)
    assert mx.isnan(y).all()
    zeros = mx.zeros(v.shape)
    y = fast.scaled_dot_product_attention(zeros, zeros, v, scale=1.0)
    assert np.allclose(to_numpy(y), to_numpy(v), rtol=1e-4, atol=0)


def product(rng, special, dtype, rows):
    w = oracle.random_weights(rng, (40, 128), 4, 64)
    q, _ = weights_to_mlx(w, "float32")
    x = put(rng.standard_normal((rows, 128)), (rows // 2,), special, dtype)
    w_hat = mx.dequantize(*q, 64, 4)
    return to_mlx(x, dtype), q, w_hat


@special
@dtypes
def test_products(rng, special, dtype):
    for rows in (1, 3, 40):
        x, q, w_hat = product(rng, special, dtype, rows)
        theirs = wide(x)[0] @ w_hat.T
        for activations in (None, "int8"):
            y = ops.quantized_matmul(x, *q, activations=activations)
            check(y, theirs, dtype)


@special
def test_products_that_are_not_transposed(rng, special):
    x, q, w_hat = product(rng, special, "float32", 3)
    x = x[:, :40]
    check(ops.quantized_matmul(x, *q, False), x @ w_hat, "float32")


@special
@pytest.mark.parametrize("activations", [None, "int8"])
def test_gathered_products_and_gates(rng, special, activations):
    x, q, w_hat = product(rng, special, "float32", 5)
    many = [mx.stack([a, a[::-1]]) for a in q]
    rhs = mx.array([1, 0, 1, 1, 0])
    both = mx.stack([w_hat, w_hat[::-1]])[rhs]
    theirs = x[:, None] @ both.swapaxes(-1, -2)
    form = {"rhs_indices": rhs, "activations": activations}
    check(ops.gather_qmm(x[:, None], *many, **form), theirs, "float32")
    gated = ops.gather_swiglu(x[:, None], many, many, **form)
    check(gated, theirs * mx.sigmoid(theirs) * theirs, "float32")


@pytest.mark.parametrize("size", [1e28, 1e30, 1e32, 1e34, 1e36])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_8_bit_activations_of_any_size_keep_their_bound(rng, size, rows, bits):
    w = oracle.random_weights(rng, (40, 128), bits, 64)
    q, w = weights_to_mlx(w, "float32")
    x = rng.standard_normal((rows, 128))
    x[0] *= size
    x = to_mlx(x, "float32")
    y = ops.quantized_matmul(x, *q, bits=bits, activations="int8")
    exact = oracle.matmul(to_numpy(x), w.dequantize())
    magnitude = oracle.matmul(abs(to_numpy(x)), w.magnitude())
    allowed = tolerance.bound(exact, magnitude, 128, "float32")
    allowed += 1.001 * tolerance.integer_bound(to_numpy(x), w.dequantize(), 64, "int8")
    tolerance.assert_close(to_numpy(y), exact, allowed)


@pytest.mark.cpu
def test_a_row_beyond_8_bits_has_the_same_bits_alone_and_repacked(rng):
    x, q, _ = product(rng, "largest", "float32", 9)
    rows = ops.quantized_matmul(x, *q, activations="int8")
    alone = [ops.quantized_matmul(x[i : i + 1], *q, activations="int8") for i in (4, 5)]
    assert mx.array_equal(rows[4:6], mx.concatenate(alone))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("addend", ["bias", "residual"])
def test_addends(rng, value, addend):
    x, q, w_hat = product(rng, "subnormal", "float32", 3)
    shape = (40,) if addend == "bias" else (3, 40)
    more = mx.zeros(shape)
    more[..., 7] = value
    y = ops.quantized_matmul(x, *q, **{addend: more})
    check(y, x @ w_hat.T + more, "float32")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("which", ["scales", "biases"])
def test_scales_and_biases(rng, value, which):
    x, q, _ = product(rng, "-0", "float32", 2)
    w, scales, biases = q
    {"scales": scales, "biases": biases}[which][3, 1] = value
    w_hat = mx.dequantize(w, scales, biases, 64, 4)
    check(ops.dequantize(w, scales, biases, 64, 4), w_hat, "float32")
    check(ops.quantized_matmul(x, w, scales, biases), x @ w_hat.T, "float32")

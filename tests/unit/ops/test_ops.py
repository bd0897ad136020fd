"""quantized_matmul and dequantize as drop-ins: shapes, types, errors."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble import _native, nn, ops
from mlx_nibble.formats import FLOAT_MODES, GROUP_SIZES, MODES, SUPPORTED_BITS
from tests.support import oracle
from tests.support.arrays import DTYPES, to_mlx, to_numpy, weights_to_mlx
from tests.support.mlx_formats import OTHER_FORMATS
from tests.support.tolerance import (
    assert_close,
    bound,
    on_cuda,
    relative_rms,
    weight_dtype,
)


def make(rng, w_shape, bits=4, group_size=64, scale_dtype="float16"):
    w = oracle.random_weights(rng, w_shape, bits, group_size)
    return weights_to_mlx(w, scale_dtype)


def check(y, x, w, transpose=True, rows=1):
    """Compare with the oracle at the tolerance of the result's own type."""
    name = str(y.dtype).removeprefix("mlx.core.")
    x = to_numpy(x)
    exact = oracle.matmul(x, w.dequantize(), transpose)
    magnitude = oracle.matmul(abs(x), w.magnitude(), transpose)
    weights = weight_dtype(name, transpose, rows)
    allowed = bound(exact, magnitude, x.shape[-1], name, weights)
    assert_close(to_numpy(y), exact, allowed)


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pair_of_types_keeps_the_type_of_x(rng, dtype, scale_dtype, transpose):
    q, w = make(rng, (96, 128), scale_dtype=scale_dtype)
    x = to_mlx(rng.standard_normal((3, 128 if transpose else 96)), dtype)
    y = ops.quantized_matmul(x, *q, transpose)
    assert y.dtype == DTYPES[dtype]
    check(y, x, w, transpose)


@pytest.mark.parametrize(
    ("x_batch", "w_batch"),
    [
        ((), ()),
        ((2,), ()),
        ((2, 3), ()),
        ((), (2,)),
        ((2,), (2,)),
        ((2, 3), (3,)),
        ((2, 1), (3,)),
        ((2, 3), (2, 1)),
        ((2, 3, 4), (2, 1, 4)),
        ((1,), (5,)),
    ],
)
@pytest.mark.parametrize("transpose", [True, False])
def test_batches_broadcast_like_matmul(rng, x_batch, w_batch, transpose):
    q, w = make(rng, (*w_batch, 48, 64), group_size=32)
    x = to_mlx(rng.standard_normal((*x_batch, 2, 64 if transpose else 48)), "float32")
    check(ops.quantized_matmul(x, *q, transpose, 32), x, w, transpose)


def test_a_vector(rng):
    q, w = make(rng, (48, 64))
    x = to_mlx(rng.standard_normal(64), "float32")
    check(ops.quantized_matmul(x, *q), x, w)


def test_a_vector_against_a_batch_of_weights(rng):
    q, w = make(rng, (3, 48, 64))
    x = to_mlx(rng.standard_normal(64), "float32")
    check(ops.quantized_matmul(x, *q), x, w)


def test_strided_activations_and_weights(rng):
    q, w = make(rng, (96, 128))
    wide = to_mlx(rng.standard_normal((128, 6)), "float32")
    x = wide.T[::2]
    check(ops.quantized_matmul(x, *q), x, w)

    every_other = [a[::2] for a in q]
    half = oracle.Weights(w.words[::2], w.scales[::2], w.biases[::2], 4, 64)
    check(ops.quantized_matmul(x, *every_other), x, half)


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_empty_activations_give_an_empty_result(rng, shape):
    q, _ = make(rng, (48, 64))
    y = ops.quantized_matmul(mx.zeros(shape), *q)
    assert y.shape == (*shape[:-1], 48)
    mx.eval(y)


@pytest.mark.parametrize("name", ["bias", "residual"])
def test_no_rows_and_an_addend_compiled(rng, name):
    # MLX's compiled sums of no elements end the process on CUDA.
    q, _ = make(rng, (48, 64))
    addend = {"bias": mx.ones(48), "residual": mx.ones((0, 48))}[name]
    product = mx.compile(lambda x, a: ops.quantized_matmul(x, *q, **{name: a}))
    assert np.array(product(mx.zeros((0, 64)), addend)).shape == (0, 48)


@pytest.mark.parametrize("x_shape", [(0, 128), (2, 0, 128)])
@pytest.mark.parametrize("transpose", [True, False])
def test_what_mlx_computes_may_be_empty(x_shape, transpose):
    q = mx.quantize(mx.random.normal((128, 128)), 32, 4, "mxfp4")
    y = ops.quantized_matmul(
        mx.zeros(x_shape), *q, transpose=transpose, group_size=32, mode="mxfp4"
    )
    assert np.array(y).shape == x_shape


def test_a_matrix_of_no_columns_not_transposed(rng):
    q, _ = make(rng, (48, 64))
    y = ops.quantized_matmul(mx.ones((3, 48)), *[a[:, :0] for a in q], transpose=False)
    assert np.array(y).shape == (3, 0)


def test_integers_take_the_type_of_the_scales(rng):
    q, w = make(rng, (48, 64))
    x = mx.array(rng.integers(-3, 4, (2, 64)).astype(np.int32))
    y = ops.quantized_matmul(x, *q)
    assert y.dtype == mx.float16
    check(y, x, w)


@pytest.mark.parametrize(("mode", "bits", "group_size"), OTHER_FORMATS)
def test_formats_beside_the_usual_ones(mode, bits, group_size):
    assert ops.supports(mode, bits, group_size)
    assert ops.supports(mode, bits, group_size, gpu=True)
    w = mx.random.normal((64, 128))
    q = mx.quantize(w, group_size, bits, mode)
    x = mx.random.normal((2, 128))
    kwargs = {"group_size": group_size, "bits": bits, "mode": mode}
    ours = ops.quantized_matmul(x, *q, **kwargs)
    theirs = mx.quantized_matmul(x, *q, **kwargs)
    assert mx.allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    ours, theirs = ops.dequantize(*q, **kwargs), mx.dequantize(*q, **kwargs)
    assert ours.dtype == theirs.dtype and mx.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": mx.ones((64, 4))}, "mode 'mxfp4' needs scales of uint8 but"),
        ({"biases": mx.ones((64, 4))}, "mode 'mxfp4' must have no biases but got some"),
        ({"scales": mx.ones((64, 3), mx.uint8)}, r"scales of shape \(64,4\) are req"),
    ],
)
def test_arrays_that_are_not_of_the_mode(change, message):
    w, scales = mx.quantize(mx.random.normal((64, 128)), mode="mxfp4")
    given = {"scales": scales} | change
    for operation in (ops.dequantize, partial(ops.quantized_matmul, mx.ones((2, 128)))):
        with pytest.raises(ValueError, match=message):
            operation(w, **given, mode="mxfp4")


@pytest.mark.parametrize("mode", FLOAT_MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_codes_and_scales_of_the_modes_of_floats(mode, dtype):
    """As MLX, which rounds scales to float16 where results are float16."""
    row = MODES[mode]
    (bits,), (group_size,) = row.bits, row.group_sizes
    codes = np.arange(max(2**bits, group_size)) % 2**bits
    w = mx.array(np.tile(oracle.pack(codes, bits), (256, 1)))
    groups = len(codes) // group_size
    scales = mx.array(np.repeat(np.arange(256, dtype=np.uint8)[:, None], groups, 1))
    form = {"mode": mode, "dtype": DTYPES[dtype]}
    ours, theirs = ops.dequantize(w, scales, **form), mx.dequantize(w, scales, **form)
    if dtype == "float16":
        theirs = mx.dequantize(w, scales, mode=mode, dtype=mx.float32)
        theirs = theirs.astype(mx.float16)
    assert ours.dtype == theirs.dtype
    if mx.cuda.is_available():  # MLX's scale 255 is NaN there, and infinite elsewhere
        ours, theirs = ours[:255], theirs[:255]
    assert mx.array_equal(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("mode", FLOAT_MODES)
def test_gradients_of_the_modes_of_floats(mode):
    w, scales = mx.quantize(mx.random.normal((64, 128)), mode=mode)
    x, dy = mx.random.normal((3, 128)), mx.random.normal((3, 64))

    def by(operation):
        return lambda x: operation(x, w, scales, mode=mode)

    _, ours = mx.vjp(by(ops.quantized_matmul), [x], [dy])
    _, theirs = mx.vjp(by(mx.quantized_matmul), [x], [dy])
    assert mx.allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-4)
    _, moved = mx.jvp(by(ops.quantized_matmul), [x], [x])
    assert mx.allclose(moved[0], by(ops.quantized_matmul)(x))
    batch = mx.random.normal((5, 3, 128))
    mapped = mx.vmap(by(ops.quantized_matmul))(batch)
    assert mx.array_equal(mapped, by(ops.quantized_matmul)(batch))
    # On CUDA a product of float32 is dense, and MLX says why codes have no gradient.
    mlx_s = "|VJP with respect to indices|Not implemented for FromFP8"
    message = "mode with biases .* mode is" + (mlx_s if on_cuda() else "")
    with pytest.raises(ValueError, match=message):
        mx.vjp(lambda s: ops.quantized_matmul(x, w, s, mode=mode), [scales], [dy])


@pytest.mark.parametrize("mode", FLOAT_MODES)
def test_each_matrix_of_a_mapped_stack(mode):
    w, scales = mx.quantize(mx.random.normal((4, 64, 128)), mode=mode)
    x = mx.random.normal((4, 3, 128))
    mapped = mx.vmap(lambda *a: ops.quantized_matmul(*a, mode=mode))(x, w, scales)
    each = [ops.quantized_matmul(*a, mode=mode) for a in zip(x, w, scales, strict=True)]
    if on_cuda():  # dense products, whose sums have another order in a batch
        assert mx.allclose(mapped, mx.stack(each), rtol=1e-5, atol=1e-4)
    else:
        assert mx.array_equal(mapped, mx.stack(each))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_are_not_kept_in_sixteen_bits(rng, dtype):
    """At K=4096 MLX's CPU is off by 0.9 % (float16) and 6.8 % (bfloat16)."""
    q, w = make(rng, (256, 4096), scale_dtype=dtype)
    x = to_mlx(rng.standard_normal((4, 4096)), dtype)
    exact = oracle.matmul(to_numpy(x), w.dequantize())
    floor = relative_rms(to_numpy(to_mlx(exact, dtype)), exact)
    error = relative_rms(to_numpy(ops.quantized_matmul(x, *q)), exact)
    assert error <= 1.01 * floor


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_hundreds_of_rows_between_few(rng, dtype):
    """MLX's graphs for CUDA keep nodes of one kernel and get those of another."""
    q, w = make(rng, (14336, 704), scale_dtype=dtype)
    few_q, few_w = make(rng, (67, 704), scale_dtype=dtype)
    for M in (512, 445, 120):
        x = to_mlx(rng.standard_normal((M, 704)), dtype)
        check(ops.quantized_matmul(x, *q), x, w, rows=M)
        check(ops.quantized_matmul(x[:7], *few_q), x[:7], few_w)


def test_float32_error_at_k_4096(rng):
    q, w = make(rng, (256, 4096), scale_dtype="float32")
    x = to_mlx(rng.standard_normal((4, 4096)), "float32")
    exact = oracle.matmul(to_numpy(x), w.dequantize())
    assert relative_rms(to_numpy(ops.quantized_matmul(x, *q)), exact) <= 1e-6


@pytest.mark.parametrize("bits", SUPPORTED_BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_dequantize_is_mlx_own_to_the_last_bit(rng, bits, group_size):
    q, _ = make(rng, (3, 5, 256), bits, group_size, "float32")
    ours = ops.dequantize(*q, group_size, bits)
    assert mx.array_equal(ours, mx.dequantize(*q, group_size, bits))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_rounds_once_to_the_type_asked_for(rng, dtype):
    q, w = make(rng, (8, 256), scale_dtype="float16")
    ours = ops.dequantize(*q, dtype=DTYPES[dtype])
    assert ours.dtype == DTYPES[dtype]
    exact = w.dequantize()
    assert_close(to_numpy(ours), exact, bound(exact, w.magnitude(), 1, dtype))


BAD = [
    (dict(w_dtype=mx.int32), "w must be packed in uint32 but its dtype is int32"),
    (dict(biases=None), "mode 'affine' needs biases but got none"),
    (dict(x_shape=(2, 65)), r"the last dimension of x must be 64 .* \(2,65\)"),
    (dict(scales_shape=(48, 2)), "must have the same shape"),
    (dict(group_size=32), r"scales of shape \(48,2\) are required .* \(48,1\)"),
    (dict(scale_dtype=mx.int32), "must be floating point but are int32"),
    (dict(w_shape=(8,)), "two or more dimensions"),
    (dict(bits=0), "bits and group_size must be positive but are 0 and 64"),
    (dict(group_size=-1), "bits and group_size must be positive but are 4 and -1"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_one_clear_error(change, message):
    w_shape = change.get("w_shape", (48, 8))
    w = mx.zeros(w_shape, dtype=change.get("w_dtype", mx.uint32))
    group_shape = (*w_shape[:-1], 1)
    scales = mx.zeros(change.get("scales_shape", group_shape))
    scales = scales.astype(change.get("scale_dtype", mx.float32))
    biases = change.get("biases", mx.zeros(group_shape).astype(scales.dtype))
    x = mx.zeros(change.get("x_shape", (2, 64)))
    with pytest.raises(ValueError, match=rf"\[quantized_matmul\] .*{message}"):
        ops.quantized_matmul(
            x, w, scales, biases, True, change.get("group_size"), change.get("bits")
        )


def test_batches_that_do_not_fit_are_an_error(rng):
    q, _ = make(rng, (3, 48, 64))
    with pytest.raises(ValueError, match="broadcast"):
        ops.quantized_matmul(mx.zeros((2, 4, 64)), *q)


def test_without_the_extension_every_op_is_mlx_own(monkeypatch):
    monkeypatch.setattr(_native, "ext", None)
    q = mx.quantize(mx.random.normal((64, 128)), 64, 4)
    x = mx.random.normal((2, 128))
    assert mx.array_equal(ops.quantized_matmul(x, *q), mx.quantized_matmul(x, *q))
    assert mx.array_equal(ops.dequantize(*q), mx.dequantize(*q))
    assert not ops.supports("affine", 4, 64)


@pytest.mark.parametrize("group_size", [0, -1])
@pytest.mark.parametrize("kind", [nn.QuantizedLinear, nn.QuantizedEmbedding])
def test_a_layer_of_empty_groups_ends_no_process(kind, group_size):
    with pytest.raises(ValueError, match="group_size must be positive but got"):
        kind(64, 32, group_size=group_size)
    assert kind(64, 64).group_size == 64

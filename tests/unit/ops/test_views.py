"""Operands that are views: the values are those of a copy."""

import mlx.core as mx
import pytest

from mlx_nibble import fast, ops

VIEWS = {
    "slices of a buffer": lambda a: a[:, 1:3, 2:7],
    "swapped axes": lambda a: a.swapaxes(1, 2),
    "all axes reversed": lambda a: a.transpose(3, 2, 1, 0),
    "every second column": lambda a: a[..., ::2],
    "columns from the end": lambda a: a[..., ::-1],
    "rows from the end": lambda a: a[:, ::-1],
    "a broadcast batch": lambda a: mx.broadcast_to(a[:1], a.shape),
    "one number": lambda a: mx.broadcast_to(a[0, 0, 0, 0], a.shape),
    "one column": lambda a: mx.broadcast_to(a[..., :1], a.shape),
    "large": lambda a: mx.broadcast_to(a, (9, *a.shape)).swapaxes(0, 3),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_an_elementwise_operation(name, dtype):
    view = VIEWS[name](mx.random.normal((3, 4, 10, 64)).astype(dtype))
    copy = mx.contiguous(view)
    mx.eval(view, copy)
    assert mx.array_equal(fast.swiglu(view, view), fast.swiglu(copy, copy))


@pytest.mark.parametrize("name", VIEWS)
def test_a_product(name):
    view = VIEWS[name](mx.random.normal((32, 32, 32, 64)))
    w = mx.quantize(mx.random.normal((32, view.shape[-1])), 32, 4)
    copy = mx.contiguous(view)
    mx.eval(view, copy)
    ours, want = (
        ops.quantized_matmul(a, *w, group_size=32, bits=4) for a in (view, copy)
    )
    assert mx.array_equal(ours, want)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("transpose", [True, False])
def test_matrices_that_are_slices_of_a_cache(bits, transpose):
    parts = mx.quantize(mx.random.normal((2, 3, 300, 64)), 64, bits)
    views = [a[:, :, :257] for a in parts]
    copies = [mx.contiguous(a) for a in views]
    x = mx.random.normal((2, 3, 2, 64 if transpose else 257))
    mx.eval(views, copies)
    ours, want = (
        ops.quantized_matmul(x, *w, transpose=transpose, group_size=64, bits=bits)
        for w in (views, copies)
    )
    assert mx.array_equal(ours, want)


@pytest.mark.parametrize("scales", [mx.float16, mx.float32])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_matrices_that_share_their_groups(scales, dtype):
    w, s, b = mx.quantize(mx.random.normal((5, 32, 96)), 32, 4)
    groups = [mx.broadcast_to(a[:1].astype(scales), a.shape) for a in (s, b)]
    copies = [mx.contiguous(a) for a in groups]
    x = mx.random.normal((1, 1, 96)).astype(dtype)
    chosen = {"lhs_indices": mx.zeros(5, mx.uint32), "rhs_indices": mx.arange(5)}
    mx.eval(w, groups, copies, x)
    for ours, want in [
        [ops.dequantize(w, *a, group_size=32, bits=4) for a in (groups, copies)],
        [
            ops.gather_qmm(x, w, *a, group_size=32, bits=4, **chosen)
            for a in (groups, copies)
        ],
    ]:
        assert mx.array_equal(ours, want)

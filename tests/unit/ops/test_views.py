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


@pytest.mark.parametrize("shared", ["by matrices", "by rows"])
@pytest.mark.parametrize("scales", [mx.float16, mx.float32])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_groups_that_are_shared(shared, scales, dtype):
    w, s, b = mx.quantize(mx.random.normal((5, 32, 512)), 32, 4)
    ones = [a[:1] if shared == "by matrices" else a[:, :1] for a in (s, b)]
    groups = [mx.broadcast_to(a.astype(scales), s.shape) for a in ones]
    copies = [mx.contiguous(a) for a in groups]
    x = mx.random.normal((1, 1, 512)).astype(dtype)
    chosen = {"lhs_indices": mx.zeros(5, mx.uint32), "rhs_indices": mx.arange(5)}
    mx.eval(w, groups, copies, x)
    form = {"group_size": 32, "bits": 4}
    for op in (
        lambda s, b: ops.dequantize(w, s, b, **form),
        lambda s, b: ops.gather_qmm(x, w, s, b, **chosen, **form),
        lambda s, b: ops.quantized_matmul(x, w, s, b, **form),
        lambda s, b: ops.quantized_matmul(x[0], w[3], s[3], b[3], **form),
    ):
        assert mx.array_equal(op(*groups), op(*copies))

"""The modes of floats and 1 bit on a GPU: our kernels, and MLX's where we have none."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble.formats import FLOAT_MODES, MODES
from tests.metal.conftest import VIEW
from tests.metal.replay import execute
from tests.support import oracle, tolerance
from tests.support.arrays import to_mlx, to_numpy
from tests.support.graph import node_names

FORMATS = [(m, MODES[m].default_bits, MODES[m].default_group_size) for m in FLOAT_MODES]
FORMATS += [("affine", 1, 32)]


def is_ours(y):
    return any(name.startswith("Nibble") for name in node_names(y))


def matrix(mode, bits, group_size, K=128):
    made = mx.quantize(mx.zeros((3, 64, K)), group_size, bits, mode)
    return (*made, None) if len(made) == 2 else tuple(made)


@pytest.mark.parametrize(("mode", "bits", "group_size"), FORMATS)
def test_every_operation_is_ours(recorder, mode, bits, group_size):
    form = {"group_size": group_size, "bits": bits, "mode": mode}
    x, rhs = mx.zeros((3, 1, 128)), mx.array([2, 0, 1], mx.uint32)
    gate, up = matrix(mode, bits, group_size), matrix(mode, bits, group_size)
    mx.eval([a for a in (*gate, *up) if a is not None], x, rhs)
    ext, stream = recorder.module, recorder.stream
    for y in (
        ext.quantized_matmul(x, *gate, **form, stream=stream),
        ext.gather_qmm(x, *gate, rhs_indices=rhs, **form, stream=stream),
        ext.swiglu_matmul(x, gate, up, **form, stream=stream),
        ext.gather_swiglu(x, gate, up, rhs_indices=rhs, **form, stream=stream),
        ext.dequantize(*gate, **form, stream=stream),
    ):
        assert is_ours(y)


def test_rows_that_end_inside_a_block_and_global_scales_are_mlx_own(recorder):
    form = {"group_size": 16, "bits": 4, "mode": "nvfp4"}
    ext, stream = recorder.module, recorder.stream
    short, whole = matrix("nvfp4", 4, 16, 48), matrix("nvfp4", 4, 16)
    rhs = mx.array([2, 0, 1], mx.uint32)
    scale = mx.ones((3,))
    mx.eval(short[:2], whole[:2], rhs, scale)
    x = mx.zeros((3, 1, 128))
    for y in (
        ext.quantized_matmul(x[..., :48], *short, **form, stream=stream),
        ext.gather_qmm(
            x, *whole, rhs_indices=rhs, global_scale=scale, **form, stream=stream
        ),
    ):
        assert not is_ours(y)


@pytest.mark.parametrize("mode", FLOAT_MODES)
def test_scales_that_are_a_view_are_copied_byte_by_byte(recorder, rng, mode):
    bits, group_size, *_ = oracle.FLOAT_MODES[mode]
    w = oracle.random_floats(rng, (9, 128), mode)
    turned = mx.array(np.ascontiguousarray(w.scales.T))
    x = to_mlx(rng.standard_normal((2, 128)), "float16")
    words = mx.array(w.words)
    scales = turned.T
    mx.eval(x, words, turned, scales)
    dispatches = []

    def record_and_execute(dispatch):
        dispatches.append(dispatch.kernel)
        execute(dispatch)

    recorder.set_executor(record_and_execute)
    form = {"group_size": group_size, "bits": bits, "mode": mode}
    y = recorder.module.quantized_matmul(
        x, words, scales, None, **form, stream=recorder.stream
    )
    recorder.evaluate(y)
    assert dispatches[0] == f"{VIEW}_bytes" and len(dispatches) == 2
    exact = oracle.matmul(to_numpy(x), w.dequantize())
    magnitude = oracle.matmul(abs(to_numpy(x)), w.magnitude())
    allowed = tolerance.bound(exact, magnitude, 128, "float16", "float16")
    tolerance.assert_close(to_numpy(y), exact, allowed)

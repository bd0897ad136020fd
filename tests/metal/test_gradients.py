"""Gradients of scales and biases on the stand-in GPU: routed, encoded, right."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tests.metal.replay import execute
from tests.simt import numbers
from tests.support import oracle, tolerance

NODE = "NibbleGroupGradient"


def values(a: mx.array) -> np.ndarray:
    return np.array(a.astype(mx.float32)).astype(np.float64)


def matrix(rng, *shape: int) -> tuple[oracle.Weights, list[mx.array]]:
    w = oracle.random_weights(rng, shape, 4, 64)
    w.scales[:] = numbers.rounded(w.scales, "float16")
    w.biases[:] = numbers.rounded(w.biases, "float16")
    arrays = [
        mx.array(w.scales.astype(np.float16)),
        mx.array(w.biases.astype(np.float16)),
    ]
    return w, [mx.array(w.words), *arrays]


def half(rng, *shape: int) -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float16))


@pytest.fixture
def launched(recorder):
    names = []

    def run(dispatch):
        names.append(dispatch.kernel)
        execute(dispatch)

    recorder.set_executor(run)
    return names


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("argument", [0, 1])
def test_gradients_of_a_product(recorder, launched, rng, transpose, argument):
    w, (words, scales, biases) = matrix(rng, 1, 36, 128)
    words, scales, biases = words[0], scales[0], biases[0]
    x = half(rng, 2, 5, 128 if transpose else 36)
    dy = half(rng, 2, 5, 36 if transpose else 128)
    mx.eval(words, scales, biases, x, dy)

    def product(scales, biases):
        return recorder.quantized_matmul(x, words, scales, biases, transpose)

    _, gradients = mx.vjp(product, [scales, biases], [dy])
    assert gradients[argument].dtype == mx.float16
    node = recorder.find(gradients[argument], NODE)
    result = recorder.evaluate_with(node, x)
    exact, allowed = tolerance.group_gradients(
        values(x).reshape(1, 10, -1), values(dy).reshape(1, 10, -1), w, [0], transpose
    )
    tolerance.assert_close(np.array(result), exact[:, 0], allowed[:, 0])
    assert launched[-1] == "group_gradient_f16_f16_b4_g64"


def test_gradients_of_experts(recorder, launched, rng):
    w, (words, scales, biases) = matrix(rng, 3, 36, 128)
    x, dy = half(rng, 4, 2, 128), half(rng, 4, 2, 36)
    lhs = np.array([2, 0, 3, 1], np.uint32)
    rhs = np.array([2, 0, 2, 0], np.uint32)
    mx.eval(words, scales, biases, x, dy)

    def product(scales, biases):
        return recorder.gather_qmm(
            x, words, scales, biases, mx.array(lhs), mx.array(rhs)
        )

    _, (gradient, _) = mx.vjp(product, [scales, biases], [dy])
    # MLX sorts the indices; its operations do not run on the stand-in.
    order = mx.array(np.argsort(rhs, kind="stable").astype(np.uint32))
    mx.eval(order)
    node = recorder.find(gradient, NODE)
    result = recorder.evaluate_with(node, order, 5)
    exact, allowed = tolerance.group_gradients(values(x)[lhs], values(dy), w, rhs, True)
    tolerance.assert_close(np.array(result), exact, allowed)
    assert launched[-1] == "gather_group_gradient_f16_f16_b4_g64"


def gradient_node(recorder, x, matrix, argument=0):
    words, scales, biases = matrix

    def product(scales):
        return recorder.quantized_matmul(x, words, scales, biases)

    y, (gradient,) = mx.vjp(
        product, [scales], [mx.zeros((*x.shape[:-1], scales.shape[0]), x.dtype)]
    )
    return recorder.find(y[0], "QuantizedMatmul"), recorder.find(gradient, NODE)


@pytest.mark.parametrize(("dtype", "ours"), [(mx.float16, False), (mx.float32, True)])
def test_many_rows_on_neural_accelerators_are_dense(recorder, rng, dtype, ours):
    """The product is MLX's there. In float32 the gradient is ours all the same."""
    recorder.set_gpu_facts(lambda: (10, True, True))
    _, arrays = matrix(rng, 1, 2048, 1024)
    x = mx.zeros((4096, 1024), dtype)
    theirs, node = gradient_node(recorder, x, [a[0] for a in arrays])
    assert theirs is not None and (node is not None) is ours


def test_a_kernel_that_failed_its_trial_is_not_used(recorder, rng):
    recorder.set_judge(lambda kernel: "gradient" not in kernel)
    _, arrays = matrix(rng, 1, 64, 128)
    _, node = gradient_node(recorder, half(rng, 8, 128), [a[0] for a in arrays])
    recorder.set_judge(None)
    assert node is None


def test_the_gradient_of_x_is_a_product_of_ours(recorder, rng):
    """A LoRA's base has this gradient alone."""
    _, arrays = matrix(rng, 1, 64, 128)
    words, scales, biases = (a[0] for a in arrays)

    def product(x):
        return recorder.quantized_matmul(x, words, scales, biases)

    _, (gradient,) = mx.vjp(product, [half(rng, 8, 128)], [half(rng, 8, 64)])
    assert recorder.find(gradient, "NibbleQuantizedMatmul") is not None

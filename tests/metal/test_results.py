"""From MLX's arrays to results: our nodes, planner, encoder and kernels' text."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tests.metal.conftest import VIEW
from tests.metal.replay import execute
from tests.support import oracle, tolerance
from tests.support.arrays import DTYPES, to_mlx, to_numpy, weights_to_mlx
from tests.support.graph import node_names


@pytest.mark.parametrize("epilogue", [False, True])
def test_sums_are_handed_from_launch_to_launch(recorder, rng, epilogue):
    """About the smallest product whose K is split on some GPU; computed too."""
    M, N, K, group_size = 33, 64, 8192, 64
    recorder.configure("applegpu_g17d")
    weights = oracle.random_weights(rng, (N, K), 4, group_size)
    arrays, weights = weights_to_mlx(weights, "float16")
    x = to_mlx(rng.standard_normal((M, K)), "float16")
    exact = oracle.matmul(to_numpy(x), weights.dequantize())
    magnitude = oracle.matmul(abs(to_numpy(x)), weights.magnitude())
    added = {}
    if epilogue:
        added["bias"] = to_mlx(rng.standard_normal(N), "float16")
        added["residual"] = to_mlx(rng.standard_normal((M, N)), "float16")
        for addend in map(to_numpy, added.values()):
            exact, magnitude = exact + addend, magnitude + abs(addend)
    mx.eval(x, *arrays, added)
    dispatches = []

    def run(dispatch):
        dispatches.append(dispatch)
        execute(dispatch)

    recorder.set_executor(run)
    y = recorder.quantized_matmul(x, *arrays, group_size=group_size, **added)
    recorder.evaluate(y)
    parts, add = dispatches
    assert parts.kernel.startswith("qmm_splitk_f16_f16_b4_g64_")
    assert add.kernel == "qmm_splitk_sum_f16_f16_b4_g64"
    (written,) = (a for a in parts.arrays if a.output)
    assert written.nbytes == 4 * parts.threadgroups[2] * M * N
    sums = add.arrays[0]
    assert (sums.address, sums.nbytes) == (written.address, written.nbytes)
    assert [a.output for a in add.arrays] == [False, False, False, True]
    allowed = tolerance.bound(exact, magnitude, K + 2, "float16", "float16")
    tolerance.assert_close(to_numpy(y), exact, allowed, "split K")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", [1, 6, 35])
def test_from_arrays_to_results(recorder, rng, M, dtype, bits):
    """Run MLX arrays through our node, planner, encoder and kernel text."""
    N, K, group_size = 70, 128, 64
    weights = oracle.random_weights(rng, (N, K), bits, group_size)
    arrays, weights = weights_to_mlx(weights, "float16")
    x = to_mlx(rng.standard_normal((M, K)), dtype)
    mx.eval(x, *arrays)
    recorder.set_executor(execute)
    y = recorder.quantized_matmul(x, *arrays, group_size=group_size, bits=bits)
    recorder.evaluate(y)
    exact = oracle.matmul(to_numpy(x), weights.dequantize())
    magnitude = oracle.matmul(abs(to_numpy(x)), weights.magnitude())
    allowed = tolerance.bound(exact, magnitude, K, dtype, dtype)
    tolerance.assert_close(to_numpy(y), exact, allowed, f"M={M} {dtype} {bits} bits")


@pytest.mark.parametrize("M", [1, 3, 6, 35])
def test_from_arrays_to_results_with_an_epilogue(recorder, rng, M):
    N, K = 70, 128
    arrays, weights = weights_to_mlx(
        oracle.random_weights(rng, (N, K), 4, 64), "float16"
    )
    x = to_mlx(rng.standard_normal((M, K)), "bfloat16")
    bias = to_mlx(9 * rng.standard_normal(N), "bfloat16")
    residual = to_mlx(9 * rng.standard_normal((M, N)), "bfloat16")
    mx.eval(x, bias, residual, *arrays)
    recorder.set_executor(execute)
    y = recorder.quantized_matmul(x, *arrays, bias=bias, residual=residual)
    recorder.evaluate(y)
    b, r = to_numpy(bias).astype(np.float64), to_numpy(residual)
    exact = oracle.matmul(to_numpy(x), weights.dequantize()) + b + r
    magnitude = oracle.matmul(abs(to_numpy(x)), weights.magnitude())
    magnitude = magnitude + abs(b) + abs(r)
    allowed = tolerance.bound(exact, magnitude, K + 2, "bfloat16", "bfloat16")
    tolerance.assert_close(to_numpy(y), exact, allowed, f"M={M}")


def experts(rng, B):
    """Return two stacks of three matrices, and B products that choose among them."""
    pairs = [
        weights_to_mlx(oracle.random_weights(rng, (3, 70, 128), 4, 64), "float16")
        for _ in range(2)
    ]
    lhs = rng.integers(0, 5, B).astype(np.uint32)
    rhs = np.sort(rng.integers(0, 3, B)).astype(np.uint32)
    return pairs, lhs, rhs


@pytest.mark.parametrize(
    ("B", "M", "in_order", "transpose", "kernel"),
    [
        (4, 1, False, True, "gather_qmv_"),
        (2, 9, False, True, "gather_qmm_skinny_"),
        (40, 1, True, True, "gather_qmm_f16"),
        (4, 1, False, False, "gather_qvm_"),
        (2, 9, False, False, "gather_qmm_n_"),
        (40, 1, True, False, "gather_sorted_qmm_n_"),
    ],
)
def test_gathered_from_arrays_to_results(
    recorder, rng, B, M, in_order, transpose, kernel
):
    (((arrays, weights), _), lhs, rhs) = experts(rng, B)
    terms = 128 if transpose else 70
    x = to_mlx(rng.standard_normal((5, M, terms)), "float16")
    indices = [mx.array(lhs), mx.array(rhs)]
    mx.eval(x, arrays, indices)
    seen = []

    def run(dispatch):
        seen.append(dispatch.kernel)
        execute(dispatch)

    recorder.set_executor(run)
    y = recorder.gather_qmm(x, *arrays, *indices, transpose, sorted_indices=in_order)
    recorder.evaluate(y)
    assert [name.startswith(kernel) for name in seen] == [True]
    chosen = to_numpy(x)[lhs]
    exact = oracle.matmul(chosen, weights.dequantize()[rhs], transpose)
    magnitude = oracle.matmul(abs(chosen), weights.magnitude()[rhs], transpose)
    allowed = tolerance.bound(exact, magnitude, terms, "float16", "float16")
    tolerance.assert_close(to_numpy(y), exact, allowed, kernel)


@pytest.mark.parametrize("gathered", [False, True])
def test_swiglu_from_arrays_to_results(recorder, rng, gathered):
    (((gate, g), (up, u)), lhs, rhs) = experts(rng, 4)
    # Three rows with a matrix pair each are one launch too.
    x = to_mlx(rng.standard_normal((5 if gathered else 3, 1, 128)), "float16")
    indices = [mx.array(lhs), mx.array(rhs)] if gathered else []
    mx.eval(x, gate, up, indices)
    recorder.set_executor(execute)
    y = recorder.swiglu(x, gate, up, *indices)
    assert recorder.node(y) == "NibbleSwigluMatmul"
    recorder.evaluate(y)
    chosen, which = (lhs, rhs) if gathered else (np.arange(3), np.arange(3))
    exact, allowed = tolerance.swiglu(to_numpy(x)[chosen], g, u, which, "float16")
    tolerance.assert_close(to_numpy(y), exact, allowed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", [1, 3, 35])
def test_an_x_that_begins_anywhere_is_copied_first(recorder, rng, M, dtype):
    """A view into an array is contiguous and may begin at any element."""
    N, K, ahead = 9, 128, 3
    arrays, weights = weights_to_mlx(
        oracle.random_weights(rng, (N, K), 4, 64), "float16"
    )
    flat = to_mlx(rng.standard_normal(ahead + M * K), dtype)
    x = flat[ahead:].reshape(M, K)
    mx.eval(x, *arrays)
    assert recorder.address(x) == recorder.address(flat) + ahead * x.itemsize
    dispatches = []

    def record_and_execute(dispatch):
        dispatches.append(dispatch)
        execute(dispatch)

    recorder.set_executor(record_and_execute)
    y = recorder.quantized_matmul(x, *arrays)
    recorder.evaluate(y)
    copy, product = dispatches
    assert copy.kernel == "contiguous"
    assert copy.arrays[0].address == recorder.address(x)
    (bound,) = (a for a in product.arrays if a.index == 3)
    assert bound.address == copy.arrays[1].address
    exact = oracle.matmul(to_numpy(x), weights.dequantize())
    magnitude = oracle.matmul(abs(to_numpy(x)), weights.magnitude())
    allowed = tolerance.bound(exact, magnitude, K, dtype, dtype)
    tolerance.assert_close(to_numpy(y), exact, allowed, f"M={M} {dtype}")


VIEWS = {
    "transposed": lambda a: a.T,
    "every second column": lambda a: a[:, ::2],
    "every third row": lambda a: a[::3],
    "a block": lambda a: a[2:9, 5:],
    "one row for all": lambda a: mx.broadcast_to(a[1], a.shape),
    "a permuted tensor": lambda a: a.reshape(3, 96, 4, 32).transpose(0, 2, 3, 1),
    "contiguous": lambda a: a[:5],
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_copied_by_a_launch(recorder, rng, name, dtype):
    """No node of the graph makes it contiguous: at first its strides are unknown."""
    values = to_mlx(rng.standard_normal((192, 192)), dtype)
    x = VIEWS[name](values)
    arrays, weights = weights_to_mlx(
        oracle.random_weights(rng, (9, x.shape[-1] // 32 * 32), 4, 32), "float16"
    )
    x = x[..., : x.shape[-1] // 32 * 32]
    mx.eval(values, *arrays)
    y = recorder.quantized_matmul(x, *arrays, group_size=32)
    assert "Contiguous" not in node_names(y)
    mx.eval(x)
    dispatches = []

    def record_and_execute(dispatch):
        dispatches.append(dispatch.kernel)
        execute(dispatch)

    recorder.set_executor(record_and_execute)
    recorder.evaluate(y)
    copies = [] if name == "contiguous" else [VIEW]
    assert dispatches[:-1] == copies and dispatches[-1] != VIEW
    rows = to_numpy(x)
    exact = oracle.matmul(rows, weights.dequantize())
    magnitude = oracle.matmul(abs(rows), weights.magnitude())
    allowed = tolerance.bound(exact, magnitude, x.shape[-1], dtype, dtype)
    tolerance.assert_close(to_numpy(y), exact, allowed)

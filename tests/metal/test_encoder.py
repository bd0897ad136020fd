"""The encoder encodes what the planner planned, and the results are right."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlx_nibble
from mlx_nibble.formats import BITS, GROUP_SIZES
from tests import simt
from tests.metal.conftest import VIEW
from tests.metal.replay import execute
from tests.support import oracle, tolerance
from tests.support.arrays import to_mlx, to_numpy, weights_to_mlx
from tests.support.graph import node_names

DTYPES = ("float32", "float16", "bfloat16")
# Each test configures the recorder again; examples may share it.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def recorded(recorder, compute):
    """Evaluate the node that `compute` builds. Returns its output and dispatches."""
    dispatches = []
    recorder.set_executor(dispatches.append)
    y = compute()
    recorder.evaluate(y)
    recorder.set_executor(None)
    return y, dispatches


def assert_encoded(recorder, dispatches, launches, arrays):
    """Check each dispatch against its launch; `arrays` by the operands' names."""
    assert len(dispatches) == len(launches)
    for dispatch, launch in zip(dispatches, launches, strict=True):
        assert dispatch.kernel == launch.kernel
        start = f"mlx_nibble_{mlx_nibble.__version__}_"
        if "+" in dispatch.library:  # compiled with others by a diagnosis before
            kernels = dispatch.library.removeprefix(start).split("+")
            assert launch.kernel in kernels
        else:
            assert dispatch.library == start + launch.kernel
            assert dispatch.source == simt.kernel_source(launch.kernel)
        assert dispatch.threadgroups == launch.threadgroups
        assert dispatch.threads == launch.threads
        bound = [(a.index, a.address + a.offset, a.output) for a in dispatch.arrays]
        assert bound == [
            (index, recorder.address(arrays[name]), name == "out")
            for index, name in enumerate(launch.buffers)
        ]
        assert dispatch.bytes == [(len(launch.buffers), launch.params)]


@st.composite
def problems(draw):
    count, repeat = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    # With one matrix, every batch repeats it.
    outer = draw(st.integers(1, 2)) if count > 1 else 1
    group_size = draw(st.sampled_from(GROUP_SIZES))
    return simt.Problem(
        M=draw(st.integers(1, 70)),
        N=draw(st.integers(1, 70)),
        K=group_size * draw(st.integers(1, 4)),
        batch_size=count * repeat * outer,
        batch_count=count,
        batch_repeat=repeat,
        dtype=draw(st.sampled_from(DTYPES)),
        scale_dtype=draw(st.sampled_from(DTYPES)),
        bits=draw(st.sampled_from(BITS)),
        group_size=group_size,
        transpose=draw(st.booleans()),
    )


# Those whose products are all ours, as that of the fixture.
devices = st.builds(
    simt.Device, generation=st.integers(17, 18), tier=st.sampled_from("gsdp")
)


def operands(p: simt.Problem) -> dict[str, mx.array]:
    """Return arrays of the problem's shapes; their values do not matter."""

    def array(*shape: int, dtype: str) -> mx.array:
        return to_mlx(np.zeros(shape), dtype)

    width = p.K if p.transpose else p.N
    outer = p.batch_size // (p.batch_count * p.batch_repeat)
    groups = (p.batch_count, 1, p.N, p.K // p.group_size)
    words = np.zeros((p.batch_count, 1, p.N, p.K * p.bits // 32), np.uint32)
    arrays = {
        "x": array(outer, p.batch_count, p.batch_repeat, p.M, width, dtype=p.dtype),
        "w": mx.array(words),
        "scales": array(*groups, dtype=p.scale_dtype),
        "biases": array(*groups, dtype=p.scale_dtype),
    }
    mx.eval(arrays)
    return arrays


@shared
@given(p=problems(), device=devices, epilogue=st.tuples(st.booleans(), st.booleans()))
def test_a_product_is_encoded_as_planned(recorder, p, device, epilogue):
    recorder.configure(f"applegpu_g{device.generation}{device.tier}")
    arrays = operands(p)
    if p.transpose:
        p = replace(p, bias=epilogue[0], residual=epilogue[1])
    if p.bias:
        arrays["bias"] = to_mlx(np.zeros(p.N), p.dtype)
    if p.residual:
        shape = (*arrays["x"].shape[:-1], p.N)
        arrays["residual"] = to_mlx(np.zeros(shape), p.dtype)
    mx.eval(arrays)
    y, dispatches = recorded(
        recorder,
        lambda: recorder.quantized_matmul(
            **arrays, transpose=p.transpose, group_size=p.group_size, bits=p.bits
        ),
    )
    assert y.shape == (*arrays["x"].shape[:-1], p.N if p.transpose else p.K)
    launches = simt.plan_matmul(p, device)
    assert launches is not None
    assert_encoded(recorder, dispatches, launches, {**arrays, "out": y})


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


@shared
@given(p=problems(), rows=st.integers(1, 70))
def test_a_dequantization_is_encoded_as_planned(recorder, p, rows):
    words = mx.array(np.zeros((rows, p.K * p.bits // 32), np.uint32))
    scales = to_mlx(np.ones((rows, p.K // p.group_size)), p.scale_dtype)
    mx.eval(words, scales)
    w_hat, dispatches = recorded(
        recorder,
        lambda: recorder.dequantize(
            words, scales, scales, p.group_size, p.bits, dtype=getattr(mx, p.dtype)
        ),
    )
    flat = simt.Problem(
        M=rows,
        K=p.K,
        dtype=p.dtype,
        scale_dtype=p.scale_dtype,
        bits=p.bits,
        group_size=p.group_size,
    )
    launches = simt.plan_dequantize(flat)
    arrays = {"w": words, "scales": scales, "biases": scales, "out": w_hat}
    assert_encoded(recorder, dispatches, launches, arrays)


def test_a_slice_is_bound_where_it_begins(recorder):
    arrays = operands(simt.Problem(M=8, N=48, K=64))
    sliced = {k: a[..., 16:, :] if k != "x" else a for k, a in arrays.items()}
    mx.eval(sliced)
    y, dispatches = recorded(recorder, lambda: recorder.quantized_matmul(**sliced))
    launches = simt.plan_matmul(simt.Problem(M=8, N=32, K=64))
    assert_encoded(recorder, dispatches, launches, {**sliced, "out": y})


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


def test_symmetric_biases_are_bound_nowhere(recorder):
    arrays = operands(simt.Problem(M=1, N=48, K=256))
    y, (dispatch,) = recorded(
        recorder, lambda: recorder.quantized_matmul(**arrays, symmetric=True)
    )
    assert dispatch.kernel.endswith("_sym")
    address = recorder.address(arrays["biases"])
    assert address not in [a.address + a.offset for a in dispatch.arrays]


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


def test_swiglu_of_more_rows_is_two_products(recorder):
    gate, up = (mx.quantize(mx.zeros((64, 64))) for _ in range(2))
    x = mx.zeros((2, 64))
    mx.eval(x, gate, up)
    assert recorder.node(recorder.swiglu(x, gate, up)) != "NibbleSwigluMatmul"


def test_a_traced_graph_asks_for_every_number_of_rows(recorder):
    """Another run may have other numbers: mx.compile(shapeless=True)."""
    asked = []

    def judge(kernel):
        asked.append(kernel)
        return "qmm_f32" not in kernel

    recorder.set_judge(judge)
    q = mx.quantize(mx.zeros((64, 64)))
    x = mx.zeros((1, 64))
    mx.eval(x, q)
    y = recorder.quantized_matmul(x, *q)
    assert recorder.node(y) == "NibbleQuantizedMatmul"
    assert asked == [VIEW, "qmv_quad_f32_f32_b4_g64"]
    nodes = []

    def f(x):
        y = recorder.quantized_matmul(x, *q)
        nodes.append(recorder.node(y))
        return y

    mx.jvp(f, [x], [x])
    assert nodes == ["QuantizedMatmul"]
    assert {
        "qmv_multi_f32_f32_b4_g64_r2",
        "qmm_skinny_f32_f32_b4_g64_bm8_bn32_wk8",
    } <= {*asked}
    recorder.set_judge(None)


def test_too_many_threads_for_a_pipeline_are_refused(recorder):
    recorder.configure(max_threads=63)
    y = recorder.quantized_matmul(**operands(simt.Problem(M=1, N=8, K=64)))
    with pytest.raises(RuntimeError, match="needs 64 threads .* at most 63"):
        recorder.evaluate(y)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("applegpu_g13g", (13, "g")),
        ("applegpu_g14s", (14, "s")),
        ("applegpu_g15d", (15, "d")),
        ("applegpu_g17p", (17, "p")),
        # An unknown name is planned for as the smallest GPU that MLX runs on.
        ("applegpu_g7x", (13, "g")),
        ("applegpu_g14sx", (13, "g")),
        ("Apple Paravirtual device", (13, "g")),
        ("", (13, "g")),
    ],
)
def test_architectures(recorder, architecture, expected):
    assert recorder.parse_architecture(architecture) == expected


def test_a_graph_that_is_run_without_rows_launches_nothing(recorder):
    w = mx.quantize(mx.zeros((32, 64), mx.float16))
    x = mx.zeros((2, 64), mx.float16)
    none, lhs = mx.zeros((0, 64), mx.float16), mx.array([0, 1], mx.uint32)
    mx.eval(w, x, none, lhs)
    dispatches = []
    y = recorder.quantized_matmul(x, *w)
    recorder.set_executor(dispatches.append)
    assert recorder.evaluate_with(y, none).shape == (0, 32)
    assert dispatches == []


def test_barriers_around_products_are_a_switch_of_the_source(recorder):
    w = mx.quantize(mx.zeros((64, 64), mx.float16))
    x = mx.zeros((64, 64), mx.float16)
    mx.eval(w, x)
    found = {}
    for fences in (False, True):
        recorder.set_fences(fences)
        _, (dispatch,) = recorded(recorder, lambda: recorder.quantized_matmul(x, *w))
        found[fences] = dispatch.library, dispatch.source
    recorder.set_fences(False)
    # MLX finds a library by its name alone.
    assert found[False][0] != found[True][0]
    assert found[True][1] == "#define NIBBLE_FENCES 1\n" + found[False][1]


def test_the_core_count_of_the_machine_decides(recorder):
    """128 threadgroups of 64x32 keep 20 cores busy, the most that 'g' may have."""
    w = mx.quantize(mx.zeros((2048, 64), mx.float16))
    x = mx.zeros((64, 64), mx.float16)
    mx.eval(w, x)

    def kernel() -> str:
        _, (dispatch,) = recorded(recorder, lambda: recorder.quantized_matmul(x, *w))
        return dispatch.kernel

    assert "_bm32_bn32_" in kernel()
    asked = []
    recorder.set_gpu_facts(lambda: asked.append(0) or (8, False, True))
    assert "_bm64_bn64_" in kernel()
    kernel()
    assert len(asked) == 1
    recorder.set_gpu_facts(lambda: (0, False, True))
    assert "_bm32_bn32_" in kernel()


@pytest.mark.parametrize("neural", [False, True])
def test_prompts_are_mlx_s_where_it_has_neural_kernels(recorder, neural):
    recorder.configure("applegpu_g17s")
    recorder.set_gpu_facts(lambda: (16, neural, True))
    w = mx.quantize(mx.zeros((64, 256), mx.float16))
    rows = {M: mx.zeros((M, 256), mx.float16) for M in (1, 8, 32, 33, 512)}
    mx.eval(w, rows)
    for M, x in rows.items():
        ours = not (neural and M > 32)
        y = recorder.quantized_matmul(x, *w)
        assert (recorder.node(y) == "NibbleQuantizedMatmul") == ours, M
        # Results with the same bits for any number of rows stay ours.
        y = recorder.quantized_matmul(x, *w, batch_invariant=True)
        assert recorder.node(y) == "NibbleQuantizedMatmul"
    # A traced graph may be run with more rows.
    nodes = []
    mx.compile(
        lambda x: (
            nodes.append(recorder.node(y := recorder.quantized_matmul(x, *w))) or y
        )
    )(rows[1])
    assert (nodes[0] == "NibbleQuantizedMatmul") == (not neural)


def test_sorted_experts_are_mlx_s_where_its_tiles_are_predicted_to_win(recorder):
    experts, K = 16, 2048
    w = mx.quantize(mx.zeros((experts, 512, K), mx.float16))
    rhs = {B: mx.sort(mx.arange(B, dtype=mx.uint32) % experts) for B in (8, 512)}
    rows = {B: mx.zeros((B, 1, K), mx.float16) for B in rhs}
    mx.eval(w, rhs, rows)

    def is_ours(B: int, x: mx.array) -> bool:
        lhs = mx.arange(B, dtype=mx.uint32)
        y = recorder.gather_qmm(x, *w, lhs, rhs[B], sorted_indices=True)
        return recorder.node(y) == "NibbleGatherQMM"

    traced = []
    for architecture, prompt in (("applegpu_g14s", False), ("applegpu_g17s", True)):
        recorder.configure(architecture)
        assert is_ours(8, rows[8])
        assert is_ours(512, rows[512]) == prompt
        # A traced graph may be run with more rows.
        mx.compile(lambda x: traced.append(is_ours(8, x)) or x)(rows[8])
    assert traced == [False, True]

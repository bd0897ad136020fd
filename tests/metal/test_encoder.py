"""The encoder encodes what the planner planned."""

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
from tests.metal.replay import recorded
from tests.support.arrays import DTYPES, to_mlx

# Each test configures the recorder again; examples may share it.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


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
        dtype=draw(st.sampled_from([*DTYPES])),
        scale_dtype=draw(st.sampled_from([*DTYPES])),
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


def test_symmetric_biases_are_bound_nowhere(recorder):
    arrays = operands(simt.Problem(M=1, N=48, K=256))
    y, (dispatch,) = recorded(
        recorder, lambda: recorder.quantized_matmul(**arrays, symmetric=True)
    )
    assert dispatch.kernel.endswith("_sym")
    address = recorder.address(arrays["biases"])
    assert address not in [a.address + a.offset for a in dispatch.arrays]


def test_too_many_threads_for_a_pipeline_are_refused(recorder):
    recorder.configure(max_threads=63)
    y = recorder.quantized_matmul(**operands(simt.Problem(M=1, N=8, K=64)))
    with pytest.raises(RuntimeError, match="needs 64 threads .* at most 63"):
        recorder.evaluate(y)


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

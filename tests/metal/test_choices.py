"""The nodes that a graph on a GPU gets: ours, or MLX's where these win."""

from __future__ import annotations

import mlx.core as mx
import pytest

from tests.metal.conftest import VIEW
from tests.metal.replay import recorded


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

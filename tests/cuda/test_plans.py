"""The plans for CUDA: which problems have one, and what its launches cover."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_nibble.formats import MODES
from tests.simt import plans
from tests.simt.plans import Device, GatherProblem, Problem

CUDA = Device(cuda=True)
KERNELS = frozenset(plans.instances(cuda=True))
# An H200 gives a block this much shared memory (CUDA's table of compute capabilities);
# capabilities 8.9 and 12.0 give 99 KiB.
SHARED_BYTES = 99 << 10


@st.composite
def formats(draw: st.DrawFn) -> dict:
    """Draw the mode, the sizes and the types that kernels for CUDA have."""
    mode = draw(st.sampled_from(list(MODES)))
    return {
        "mode": mode,
        "bits": draw(st.sampled_from(MODES[mode].bits)),
        "group_size": draw(st.sampled_from(MODES[mode].group_sizes)),
        "dtype": "bfloat16",
        "scale_dtype": plans.SCALES_OF.get(mode, "bfloat16"),
    }


def of(kind: type, **fields: st.SearchStrategy) -> st.SearchStrategy:
    """Draw problems of these fields, in any format."""
    return st.builds(
        lambda form, given: kind(**form, **given),
        formats(),
        st.fixed_dictionaries(fields),
    )


problems = of(
    Problem,
    M=st.integers(1, 200),
    N=st.one_of(st.integers(1, 300), st.sampled_from([2048, 2049, 4096, 8192, 14336])),
    K=st.sampled_from([128, 384, 4096]),
    batch_invariant=st.booleans(),
    batch_size=st.integers(1, 3),
    bias=st.booleans(),
    residual=st.booleans(),
)


def numbers(kernel: str) -> dict[str, int]:
    return {k: int(v) for k, v in re.findall(r"_(bm|bn|wk|f|ahead)(\d+)", kernel)}


@given(problems)
def test_every_candidate_covers_the_result(problem: Problem) -> None:
    candidates = plans.candidates(problem, CUDA)
    assert candidates
    assert plans.plan_matmul(problem, CUDA) == candidates[0]
    rows = problem.M * problem.batch_size  # one matrix: its batches are rows
    for (launch,) in candidates:
        assert launch.kernel in KERNELS
        tile = numbers(launch.kernel)
        x, y, z = launch.threadgroups
        assert (x - 1) * tile["bn"] < problem.N <= x * tile["bn"]
        assert (y - 1) * tile["bm"] < rows <= y * tile["bm"]
        assert z == 1
        assert launch.threads == (32 * tile["wk"], 1, 1)
        assert launch.declared_bytes == 4 * tile["bm"] * tile["bn"] * tile["wk"]
        assert launch.declared_bytes <= SHARED_BYTES
        # The kernels have one form of the affine modes, which reads the biases.
        assert ("biases" in launch.buffers) is MODES[problem.mode].stores_biases
        assert "_sym" not in launch.kernel


@pytest.mark.parametrize(
    ("change", "tile"),
    [
        ({}, (16, 8)),
        ({"N": 1024}, (16, 16)),
        ({"N": 14336}, (32, 4)),
        ({"N": 14336, "bits": 8}, (32, 4)),
        ({"N": 14336, "bits": 5}, (16, 4)),
        ({"N": 14336, "group_size": 32}, (16, 4)),
        ({"K": 14336}, (32, 16)),
        ({"K": 14336, "bits": 3}, (16, 8)),
        ({"K": 14336, "group_size": 32}, (16, 8)),
    ],
)
def test_the_tile_of_a_row_is_the_fastest_measured(change: dict, tile: tuple) -> None:
    problem = Problem(
        **({"M": 1, "N": 4096, "K": 4096, "dtype": "bfloat16"} | change),
        scale_dtype="bfloat16",
    )
    ((launch,),) = [plans.plan_matmul(problem, CUDA)]
    found = numbers(launch.kernel)
    assert (found["bn"], found["wk"]) == tile


@given(problems)
def test_batch_invariant_products_add_up_in_one_order(problem: Problem) -> None:
    problem = replace(problem, batch_invariant=True)
    ((launch,),) = plans.candidates(problem, CUDA)
    tile = numbers(launch.kernel)
    assert (tile["wk"], tile["f"]) == (8, 4)
    assert not plans.left_to_mlx(problem, CUDA)


@pytest.mark.parametrize(("rows", "left"), [(1, False), (64, False), (65, True)])
def test_many_rows_are_left_to_mlx_s_dense_product(rows: int, left: bool) -> None:
    problem = Problem(M=rows, N=4096, K=4096)
    assert plans.left_to_mlx(problem, CUDA) is left
    for batch_invariant in (False, True):
        other = replace(problem, transpose=False, batch_invariant=batch_invariant)
        assert plans.left_to_mlx(other, CUDA)


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({"M": 7}, 96),
        ({"M": 8}, 128),  # MLX would raise "No implementation"
        ({"M": 4, "batch_size": 2}, 128),
        ({"M": 8, "K": 128}, 128),
        ({"M": 8, "K": 384, "group_size": 128}, 384),
        ({"M": 8, "K": 192, "group_size": 64}, 192),
        ({"M": 8, "transpose": False}, 96),
    ],
)
def test_mlx_is_given_whole_blocks_of_columns(change: dict, columns: int) -> None:
    problem = Problem(N=96, K=96, group_size=32, dtype="float32", scale_dtype="float32")
    problem = replace(problem, **change)
    assert plans.plan_matmul(problem, CUDA) is None
    assert plans.columns_for_mlx(problem, CUDA) == columns
    assert plans.columns_for_mlx(problem, Device()) == problem.K


@pytest.mark.parametrize(("bits", "left"), [(1, True), (2, False)])
def test_mlx_is_given_no_matrix_of_one_bit(bits: int, left: bool) -> None:
    problem = Problem(
        M=1, N=96, K=512, bits=bits, dtype="float32", scale_dtype="float32"
    )
    assert plans.left_to_mlx(problem, CUDA) is left


def test_a_dense_product_computes_experts_that_are_not_transposed() -> None:
    problem = GatherProblem(N=64, K=64, transpose=False)
    assert plans.plan_gather(problem, CUDA) is None
    assert plans.left_to_mlx(problem, CUDA)


@pytest.mark.parametrize(("rows", "left"), [(1, False), (7, False), (8, True)])
def test_a_dense_product_computes_many_rows_of_experts_in_float32(
    rows: int, left: bool
) -> None:
    problem = GatherProblem(M=rows, N=64, K=128, dtype="float32", scale_dtype="float32")
    assert plans.left_to_mlx(problem, CUDA) is left


gathers = of(
    GatherProblem,
    B=st.integers(1, 500),
    M=st.sampled_from([1, 1, 1, 2, 9, 70]),
    N=st.integers(1, 300),
    K=st.sampled_from([128, 384]),
    experts=st.integers(1, 9),
    sorted=st.booleans(),
    batch_invariant=st.booleans(),
)


@given(gathers)
def test_products_of_experts_are_covered(problem: GatherProblem) -> None:
    launches = plans.plan_gather(problem, CUDA)
    assert launches is not None
    (launch,) = launches
    tile = numbers(launch.kernel)
    # One order of sums for all: each product is batch-invariant.
    assert (tile["wk"], tile["f"]) == (8, 4)
    x, y, z = launch.threadgroups
    assert (x - 1) * tile["bn"] < problem.N <= x * tile["bn"]
    in_tiles = problem.sorted and problem.M == 1 and problem.B >= 2 * problem.experts
    assert ("_sorted_" in launch.kernel) is in_tiles
    if in_tiles:
        # kernels/expert_rows.h: one for each expert, and for each window but the first.
        assert y == problem.experts + -(-problem.B // tile["bm"]) - 1
        assert z == 1
    else:
        assert (y - 1) * tile["bm"] < problem.M <= y * tile["bm"]
        assert z == problem.B


@given(problems)
def test_matrices_are_dequantized_in_runs_of_eight(problem: Problem) -> None:
    launches = plans.plan_dequantize(problem, CUDA)
    assert launches is not None
    (launch,) = launches
    threads = launch.threadgroups[0] * launch.threads[0]
    eights = problem.M * problem.K // 8  # the rows of w are M here
    assert eights <= threads < eights + launch.threads[0]
    assert launch.threadgroups[1:] == (1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"transpose": False},
        {"dtype": "float32", "scale_dtype": "float32"},
        {"scale_dtype": "float32"},
        {"bits": 7},
        {"K": 96, "mode": "nvfp4", "group_size": 16, "scale_dtype": "e4m3"},
    ],
)
def test_other_problems_are_mlx_s_own(change: dict) -> None:
    assert plans.plan_matmul(replace(Problem(N=64), **change), CUDA) is None


@given(problems)
def test_gate_and_up_of_few_rows_are_one_launch(problem: Problem) -> None:
    problem = replace(problem, bias=False, residual=False)
    launches = plans.plan_swiglu(problem, CUDA)
    rows = problem.M * problem.batch_size
    assert (launches is None) is (rows > 32 and not problem.batch_invariant)
    for launch in launches or []:
        assert launch.kernel in KERNELS and launch.kernel.startswith("cuda_swiglu_")
        tile = numbers(launch.kernel)
        x, y, z = launch.threadgroups
        assert (x - 1) * tile["bn"] < problem.N <= x * tile["bn"]
        assert (y - 1) * tile["bm"] < rows <= y * tile["bm"]
        assert z == 1
        assert launch.declared_bytes == 8 * tile["bm"] * tile["bn"] * tile["wk"]
        assert launch.declared_bytes <= SHARED_BYTES


@given(gathers)
def test_gate_and_up_of_experts_are_one_launch(problem: GatherProblem) -> None:
    launches = plans.plan_swiglu(problem, CUDA)
    dense = problem.sorted and problem.M == 1 and problem.B // problem.experts > 96
    assert (launches is None) is (dense and not problem.batch_invariant)
    for launch in launches or []:
        assert launch.kernel in KERNELS
        in_tiles = problem.sorted and problem.B >= 2 * problem.experts
        family = "sorted" if in_tiles and problem.M == 1 else "gather"
        assert launch.kernel.startswith(f"cuda_{family}_swiglu_")
        assert launch.declared_bytes <= SHARED_BYTES


def test_no_launches_join_products() -> None:
    assert plans.plan_joint([Problem(N=64)] * 2, CUDA) is None


def test_no_plan_for_metal_names_a_kernel_for_cuda() -> None:
    assert not KERNELS & set(plans.instances())

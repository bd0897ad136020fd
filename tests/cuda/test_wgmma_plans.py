"""The plans for hundreds of rows on compute capability 9.0."""

from __future__ import annotations

import pytest

from tests.simt import plans
from tests.simt.plans import Device, Problem

CUDA = Device(cuda=True)
KERNELS = frozenset(plans.instances(cuda=True))
HOPPER = Device(cuda=True, wgmma=True)


@pytest.mark.parametrize(
    ("change", "tile"),
    [
        ({}, (256, 1)),
        ({"M": 65}, (128, 2)),
        ({"M": 128}, (128, 2)),
        ({"M": 256}, (256, 1)),
        ({"M": 300}, None),  # a second flight of few rows
        ({"M": 64}, None),
        ({"M": 513}, None),
        ({"N": 4096}, (128, 2)),
        ({"N": 4096, "K": 14336}, (128, 2)),
        ({"N": 4096, "K": 14336, "M": 384}, None),  # multiprocessors are idle
        ({"N": 4096, "M": 256}, None),
        ({"N": 4095, "K": 256}, None),
        ({"N": 6144}, (256, 1)),
        ({"bits": 8}, None),
        ({"K": 4064, "group_size": 32}, None),
        ({"batch_invariant": True}, None),
        ({"batch_size": 2, "M": 64}, (128, 2)),  # one matrix: rows
        ({"dtype": "float16", "scale_dtype": "float16"}, (256, 1)),
        ({"mode": "symmetric", "group_size": 128}, (256, 1)),
    ],
)
def test_tensor_cores_of_hopper_compute_hundreds_of_rows(
    change: dict, tile: tuple | None
) -> None:
    usual = {"M": 512, "N": 14336, "K": 4096}
    usual |= {"dtype": "bfloat16", "scale_dtype": "bfloat16"}
    problem = Problem(**(usual | change))
    ((launch,),) = [plans.plan_matmul(problem, HOPPER)]
    if tile is None:
        assert "wgmma" not in launch.kernel
        return
    assert launch.kernel in KERNELS
    rows, pairs = tile
    assert f"_wgmma_{problem.dtype[0]}" in launch.kernel
    assert launch.kernel.endswith(f"_bm{rows}_pairs{pairs}_o1")
    many = problem.M * problem.batch_size
    blocks = -(-many // rows) * -(-problem.N // 128)
    assert launch.threadgroups == (blocks, 1, 1)
    assert launch.declared_bytes <= 227 << 10
    assert not plans.left_to_mlx(problem, HOPPER)
    assert plans.candidates(problem, HOPPER)[0] == plans.plan_matmul(problem, HOPPER)
    assert plans.left_to_mlx(problem, CUDA)

"""Properties of every plan, checked on thousands of random problems."""

from __future__ import annotations

import itertools
import math
import re
import struct
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_nibble.formats import MODES
from tests.simt.plans import (
    DTYPES,
    SCALES_OF,
    Device,
    GatherProblem,
    Launch,
    Problem,
    candidates,
    families,
    family_name,
    instances,
    kernels_of_any_shape,
    left_to_mlx,
    mode_of,
    plan_choice,
    plan_dequantize,
    plan_gather,
    plan_gradient,
    plan_joint,
    plan_matmul,
    plan_swiglu,
)

SIMD_WIDTH = 32
# Each number of rows that a kernel is made for, and the edges of tiles.
ROWS = (*range(1, 41), 64, 65, 100, 128, 500)
DENSE = ("matmul", "joint", "swiglu", "dequantize", "gradient")
GATHERED = ("gather", "gather_swiglu", "gather_gradient")
INSTANCES = frozenset(instances())
KNOWN_FORMATS = [
    (name, bits, group_size)
    for name, mode in MODES.items()
    for bits in mode.bits
    for group_size in mode.group_sizes
]

# Plans go wrong at small sizes and at the edges of tiles.
sizes = st.one_of(
    st.integers(1, 40),
    st.builds(
        lambda tiles, off: max(1, 32 * tiles + off),
        st.integers(1, 400),
        st.integers(-1, 1),
    ),
)
devices = st.builds(
    Device,
    generation=st.integers(13, 18),
    tier=st.sampled_from("pgsd"),
    cores=st.one_of(st.just(0), st.integers(1, 80)),
)


@st.composite
def problems(draw):
    mode, bits, group_size = draw(st.sampled_from(KNOWN_FORMATS))
    count, repeat, outer = (draw(st.integers(1, 4)) for _ in range(3))
    return Problem(
        M=draw(sizes),
        N=draw(sizes),
        K=max(group_size, 32) * draw(st.integers(1, 130)),
        batch_size=count * repeat * outer,
        batch_count=count,
        batch_repeat=repeat,
        dtype=draw(st.sampled_from(DTYPES)),
        scale_dtype=SCALES_OF.get(mode) or draw(st.sampled_from(DTYPES)),
        bits=bits,
        group_size=group_size,
        mode=mode,
        transpose=(transpose := draw(st.booleans())),
        bias=transpose and draw(st.booleans()),
        residual=transpose and draw(st.booleans()),
        half_tiles=draw(st.booleans()),
    )


def run_codes(bits: int) -> int:
    """Return the shortest run of codes that fills whole words."""
    return math.lcm(bits, 32) // bits


def block(launch: Launch, p: Problem) -> tuple[int, int]:
    """Return the columns and rows of y that one threadgroup computes."""
    if launch.kernel.startswith("qvm_"):
        return 16 * run_codes(p.bits), 1
    if launch.kernel.startswith("qmv_quad_"):
        return 64, 1
    if launch.kernel.startswith("qmv_multi_"):
        return 8, int(launch.kernel.split("_r")[1])
    if launch.kernel.startswith("qmv_"):
        return 8, 1
    tile = re.search(r"_bm(\d+)_bn(\d+)_", launch.kernel)
    return int(tile[2]), int(tile[1])


def merged(p: Problem) -> tuple[int, int]:
    """Return M and the size of the batch after batches that share weights merge."""
    shared = p.batch_size if p.batch_count == 1 else p.batch_repeat
    return p.M * shared, p.batch_size // shared


def cores_of(device: Device) -> int:
    return device.cores or {"p": 6, "g": 20, "s": 40, "d": 80}[device.tier]


def check_limits(launch: Launch, device: Device) -> None:
    x, y, z = launch.threads
    assert 0 < x * y * z <= device.max_threads
    assert x * y * z % SIMD_WIDTH == 0
    assert launch.declared_bytes <= device.max_threadgroup_bytes
    assert all(0 < n < 2**31 for n in launch.threadgroups)
    assert launch.kernel in INSTANCES


def check_split(launches: list[Launch], p: Problem, device: Device) -> None:
    """Check that each element of y and each column of K is covered once."""
    parts, add = launches
    M, size = merged(p)
    assert size == 1 and p.transpose and not p.half_tiles
    for launch in launches:
        check_limits(launch, device)
    params = struct.unpack("6i", parts.params)
    part, count = params[3:5]
    assert params == (M, p.N, p.K, part, count, p.bias + 2 * p.residual)
    assert add.params == parts.params
    assert part % 512 == 0 and (count - 1) * part < p.K <= count * part
    columns, rows = block(parts, p)
    across, down, deep = parts.threadgroups
    assert (across - 1) * columns < p.N <= across * columns
    assert (down - 1) * rows < M <= down * rows
    # Without a split, cores would have few tiles.
    assert deep == count >= 2 and across * down <= 4 * cores_of(device)
    third = "biases" if p.mode == "affine" else "scales"
    assert parts.buffers == ("w", "scales", third, "x", "sums")
    assert parts.sums_bytes == 4 * count * M * p.N and add.sums_bytes == 0
    bias = "bias" if p.bias else "sums"
    residual = "residual" if p.residual else "sums"
    assert add.buffers == ("sums", bias, residual, "out")
    across, down, deep = add.threadgroups
    assert (across - 1) * 256 < p.N <= across * 256 and (down, deep) == (M, 1)
    assert add.threads == (256, 1, 1)


def test_k_is_split_by_default_where_cores_would_be_idle():
    down_projection = Problem(M=64, N=4096, K=14336)
    # 64 tiles are 8 for each of 8 cores, and 1.6 for each of 40.
    for cores, launches in [(8, 1), (40, 2), (80, 2)]:
        assert len(plan_matmul(down_projection, Device(cores=cores))) == launches
    # The second launch takes as long as a small product.
    keys = Problem(M=64, N=1024, K=2048)
    assert len(plan_matmul(keys, Device(cores=40))) == 1
    assert max(map(len, candidates(keys, Device(cores=40)))) == 2


@settings(max_examples=500)
@given(problems(), devices, st.integers(8, 64))
def test_more_rows_than_16_may_be_left_to_mlx(p, device, cores):
    device = replace(device, cores=cores)
    rows, _ = merged(p)
    if left_to_mlx(p, device):
        assert rows > 16 and p.transpose and device.generation <= 16
    assert not left_to_mlx(replace(p, batch_invariant=True), device)


def test_products_that_divide_badly_by_the_cores_are_left_to_mlx():
    # 128 threadgroups of ours take as long on 40 cores as 160; MLX makes 512.
    p = Problem(M=24, N=4096, K=4096)
    assert left_to_mlx(p, Device(generation=15, tier="s", cores=40))
    assert not left_to_mlx(p, Device(generation=15, tier="g", cores=8))
    assert not left_to_mlx(replace(p, M=16), Device(generation=15, cores=40))


def test_experts_whose_tiles_are_predicted_to_lose_are_left_to_mlx():
    # 8 rows for each expert fill half of a tile of 16 on both sides; MLX's tiles
    # decode a code in fewer cycles.
    prompt = GatherProblem(B=1024, N=768, K=2048, experts=128, sorted=True)
    for generation, tier, cores in [(13, "g", 8), (14, "s", 38), (16, "s", 40)]:
        device = Device(generation=generation, tier=tier, cores=cores)
        assert left_to_mlx(prompt, device)
        # Tiles of 32 rows decode each code half as often.
        assert not left_to_mlx(replace(prompt, B=128 * 512), device)
        assert not left_to_mlx(replace(prompt, sorted=False), device)
        assert not left_to_mlx(replace(prompt, batch_invariant=True), device)
    assert not left_to_mlx(prompt, Device(generation=17, cores=10))


@settings(max_examples=500)
@given(problems(), devices, st.sampled_from(["mlx", "", "qmv", sorted(INSTANCES)[0]]))
def test_a_tuned_choice_is_one_of_the_candidates_or_has_no_effect(p, device, other):
    plans = candidates(p, device)
    for launches in plans:
        assert plan_choice(p, launches[0].kernel, device) == launches
    if other not in {launches[0].kernel for launches in plans}:
        assert plan_choice(p, other, device) == plan_matmul(p, device)


@settings(max_examples=2000)
@given(problems(), devices)
def test_every_element_is_computed_exactly_once_within_the_limits(p, device):
    plans = candidates(p, device)
    assert plans and plans[0] == plan_matmul(p, device)
    M, size = merged(p)
    for launches in plans:
        if len(launches) == 2:
            check_split(launches, p, device)
            continue
        (launch,) = launches
        check_limits(launch, device)
        columns, rows = block(launch, p)
        across, down, deep = launch.threadgroups
        width = p.N if p.transpose else p.K
        assert (across - 1) * columns < width <= across * columns
        assert (down - 1) * rows < M <= down * rows
        assert deep == size
        third = "biases" if p.mode == "affine" else "scales"
        bias = "bias" if p.bias else "scales"
        residual = "residual" if p.residual else "scales"
        assert launch.buffers == ("w", "scales", third, "x", bias, residual, "out")
        flags = p.bias + 2 * p.residual
        sizes = (M, p.N, p.K, p.batch_count)
        assert struct.unpack("5i", launch.params) == (*sizes, flags)
        assert f"_b{p.bits}_g{p.group_size}" in launch.kernel
        assert mode_of(launch.kernel) == p.mode
        in_half = launch.kernel.startswith("qmm_half_")
        tiles = launch.kernel.startswith("qmm_bf16") or in_half
        assert in_half == (tiles and p.half_tiles)


@settings(max_examples=500)
@given(
    problems(),
    st.integers(1, 300),
    st.integers(1, 64),
    st.sampled_from([1, 1, 4, 40]),
    st.booleans(),
    st.booleans(),
)
def test_gathered_products_are_computed_exactly_once(
    p, B, experts, M, in_order, invariant
):
    form = (p.dtype, p.scale_dtype, p.bits, p.group_size, p.mode)
    g = GatherProblem(B, M, p.N, p.K, experts, *form, in_order, p.transpose, invariant)
    (launch,) = plan_gather(g)
    check_limits(launch, Device())
    tile = re.search(r"_bm(\d+)_bn(\d+)_", launch.kernel)
    columns, rows = (int(tile[2]), int(tile[1])) if tile else (8, 1)
    if launch.kernel.startswith("gather_qvm"):
        columns = 16 * run_codes(p.bits)
    # Tiles of sorted products of one row take rows of several.
    together = launch.kernel.startswith(("gather_qmm_f", "gather_qmm_b"))
    together |= launch.kernel.startswith("gather_sorted")
    # Each expert may need a tile besides those that its rows fill.
    down, deep = (B + (experts - 1) * rows, 1) if together else (M, B)
    width = p.N if p.transpose else p.K
    assert launch.threadgroups == (-(-width // columns), -(-down // rows), deep)
    assert launch.buffers[3:] == ("x", "lhs_indices", "rhs_indices", "out")
    assert struct.unpack("5i", launch.params) == (M, p.N, p.K, B, g.experts)
    # The order of a row's sum does not depend on other products.
    alone = plan_gather(replace(g, B=1, M=1, sorted=False))
    assert not invariant or order(launch) == order(alone[0])
    if p.transpose:
        fused = plan_swiglu(g)
        assert (fused is not None) == launch.kernel.startswith("gather_qmv")
        if fused:
            check_limits(fused[0], Device())
            assert fused[0].threadgroups == launch.threadgroups


def order(launch: Launch) -> str:
    """Return a kernel's name without its rows, which do not change its sums."""
    return re.sub(r"_bm\d+", "", launch.kernel)


@settings(max_examples=1000)
@given(problems(), st.lists(st.tuples(sizes, st.booleans()), max_size=3), devices)
def test_joint_products_are_those_of_one_launch_each(p, others, device):
    p = replace(p, batch_size=1, batch_count=1, batch_repeat=1, residual=False)
    products = [p, *(replace(p, N=N, bias=bias) for N, bias in others)]
    launches = plan_joint(products, device)
    (alone, *_) = plan_matmul(p, device)
    columns, rows = block(alone, p)
    each = [-(-product.N // columns) for product in products]  # threadgroups
    x, y, _ = alone.threads
    simdgroups = min(each) * -(-p.M // rows) * x * y // 32
    few = simdgroups < 16 * cores_of(device)
    fits = p.transpose and 2 <= len(products) <= 3 and few
    name = alone.kernel
    fits &= name.startswith(("qmv_", "qmm_skinny_")) and "_quad_" not in name
    fits &= p.M <= 32 and not (name.startswith("qmv_multi_") and p.M > 5)
    # In a launch of its own, each has the same kernel, so the same bits.
    fits = fits and all(plan_matmul(q, device)[0].kernel == name for q in products)
    assert (launches is not None) == fits
    if launches is None:
        return
    (launch,) = launches
    check_limits(launch, device)
    assert launch.kernel == f"joint_{name}"
    assert launch.threads == alone.threads
    assert launch.declared_bytes == alone.declared_bytes
    assert launch.threadgroups == (sum(each), *alone.threadgroups[1:])
    N = [product.N for product in products] + [0] * (3 - len(products))
    biased = sum(product.bias << i for i, product in enumerate(products))
    assert struct.unpack("6i", launch.params) == (p.M, p.K, *N, biased)
    unread = "scales"
    for i in range(3):
        end = str(i or "")
        there = i < len(products)
        operands = (f"w{end}", f"scales{end}", f"biases{end}")
        operands = operands if there else (unread,) * 3
        operands = operands if p.mode == "affine" else (*operands[:2], unread)
        assert launch.buffers[3 * i : 3 * i + 3] == operands
        bias = f"bias{end}" if there and products[i].bias else unread
        assert launch.buffers[10 + i] == bias
        assert launch.buffers[13 + i] == (f"out{end}" if there else unread)
    assert launch.buffers[9] == "x" and len(launch.buffers) == 16


@given(problems(), st.sampled_from(["K", "dtype", "bits", "M", "mode"]))
def test_products_that_differ_are_not_joint(p, what):
    p = replace(p, batch_size=1, batch_count=1, batch_repeat=1, M=1, N=64)
    p = replace(p, residual=False, transpose=True, half_tiles=False)
    value = {
        "K": p.K + max(p.group_size, 32),
        "dtype": DTYPES[DTYPES.index(p.dtype) - 1],
        "bits": 12 - p.bits if p.bits in (4, 8) else 4,
        "M": 2,
        "mode": "symmetric" if p.mode == "affine" else "affine",
    }
    assert plan_joint([p, replace(p, **{what: value[what]})]) is None
    assert plan_joint([p, replace(p, residual=True)]) is None
    assert plan_joint([p, replace(p, batch_invariant=True)]) is None


@settings(max_examples=300)
@given(problems(), devices)
def test_the_same_problem_gives_the_same_plan(p, device):
    assert plan_matmul(p, device) == plan_matmul(p, device)


@settings(max_examples=500)
@given(problems(), devices)
def test_dequantization_covers_every_word_once(p, device):
    (launch,) = plan_dequantize(p, device)
    check_limits(launch, device)
    across, down, _ = launch.threadgroups
    covered = run_codes(p.bits) * launch.threads[0]
    assert (across - 1) * covered < p.K <= across * covered
    assert down == p.M


@given(st.sampled_from([(7, 64), (4, 16), (4, 48), (4, 256)]), problems())
def test_an_unsupported_format_has_no_plan(form, p):
    bits, group_size = form
    unknown = Problem(M=p.M, N=p.N, K=512 * 3, bits=bits, group_size=group_size)
    assert plan_matmul(unknown) is None
    assert plan_dequantize(unknown) is None


def test_rows_that_end_inside_a_block_have_no_plan():
    form = {"mode": "nvfp4", "group_size": 16, "scale_dtype": "e4m3"}
    for K, known in ((32, True), (48, False), (64, True), (16, False)):
        assert (plan_matmul(Problem(M=1, N=64, K=K, **form)) is not None) == known
        assert (plan_dequantize(Problem(M=1, K=K, **form)) is not None) == known
        assert (plan_gather(GatherProblem(1, 1, 64, K, 2, **form)) is None) != known


@settings(max_examples=200)
@given(
    problems(),
    problems(),
    devices,
    st.integers(1, 300),
    st.integers(1, 64),
    st.booleans(),
    st.booleans(),
)
def test_plans_of_any_shape_name_only_kernels_of_any_shape(
    p, q, device, B, experts, in_order, invariant
):
    p = replace(p, batch_invariant=invariant)
    form = (p.dtype, p.scale_dtype, p.bits, p.group_size, p.mode)
    g = GatherProblem(
        1, p.M, p.N, p.K, experts, *form, in_order, p.transpose, invariant
    )
    groups = q.K // max(q.group_size, 32)
    sizes = {"N": q.N, "K": groups * max(p.group_size, 32)}
    # Asked for one shape, and planned for others.
    allowed = {planner: set(kernels_of_any_shape(p, planner)) for planner in DENSE}
    allowed |= {name: set(kernels_of_any_shape(g, name)) for name in GATHERED}
    for M in ROWS:
        other = replace(p, M=M, **sizes)
        one = replace(other, batch_size=1, batch_count=1, batch_repeat=1)
        joint = replace(one, residual=False)
        chosen = replace(g, B=B, M=M, **sizes)
        plans = [("matmul", plan) for plan in candidates(other, device)]
        plans += [("matmul", plan) for plan in candidates(one, device)]
        plans += [
            ("matmul", plan_matmul(other, device)),
            ("joint", plan_joint([joint, joint], device)),
            ("swiglu", plan_swiglu(one)),
            ("gather", plan_gather(chosen)),
            ("gather_swiglu", plan_swiglu(chosen)),
            ("dequantize", plan_dequantize(other)),
            ("gradient", plan_gradient(other)),
            ("gather_gradient", plan_gradient(chosen)),
        ]
        for planner, plan in plans:
            assert {launch.kernel for launch in plan or []} <= allowed[planner]


def test_every_family_is_planned_for_some_shape():
    reached = set()
    for transpose, half, in_order in itertools.product([False, True], repeat=3):
        p = Problem(dtype="bfloat16", transpose=transpose, half_tiles=half)
        g = GatherProblem(dtype="bfloat16", transpose=transpose, sorted=in_order)
        for planner in DENSE:
            reached |= set(kernels_of_any_shape(p, planner))
        for planner in GATHERED:
            reached |= set(kernels_of_any_shape(g, planner))
    assert set(map(family_name, reached)) == set(families())


def test_names_are_unique():
    assert len(set(instances())) == len(instances())


@given(p=problems(), tf32=st.booleans())
def test_prompts_alone_are_left_to_neural_accelerators(p, tf32):
    m5 = Device(generation=17, tier="s", neural=True, tf32=tf32)
    rows, _ = merged(p)
    expected = (
        rows > 32
        and not p.batch_invariant
        and (p.dtype != "float32" or tf32)
        and p.K % 64 == 0
        and (p.transpose or p.N % 64 == 0)
    )
    assert left_to_mlx(p, m5) == expected
    assert not left_to_mlx(p, replace(m5, neural=False))


@given(
    B=st.integers(1, 200),
    M=st.integers(1, 70),
    experts=st.integers(1, 16),
    sorted_rows=st.booleans(),
    invariant=st.booleans(),
)
def test_experts_with_many_rows_are_left_to_neural_accelerators(
    B, M, experts, sorted_rows, invariant
):
    p = GatherProblem(
        B=B,
        M=M,
        N=64,
        K=256,
        experts=experts,
        sorted=sorted_rows,
        batch_invariant=invariant,
    )
    ((launch,),) = [plan_gather(p)]
    many = M > 32 or launch.kernel.startswith("gather_qmm_f16")
    expected = many and not invariant
    assert left_to_mlx(p, Device(generation=17, neural=True)) == expected
    assert not left_to_mlx(p, Device(generation=17))

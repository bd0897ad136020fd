"""A model of time: kernels on Apple's GPUs, from counts and published throughputs.

Nothing here is a measurement. bench/kernel_counts.json has what a threadgroup of each
kernel executes; `Chip` has how fast a GPU does it. The time is that of the slowest of
four pipelines, because a GPU overlaps them. docs/internals/simt.md explains each
constant.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.kernel_counts import name_of
from tests import simt
from tests.simt import plans

COUNTS = Path(__file__).with_name("kernel_counts.json")

# philipturner/metal-benchmarks, README of commit dc2adc6: cycles of a simdgroup.
CYCLES = {
    "fast": 1.0,  # FADD32, FFMA32, IADD32, BITWISE32, ICMPSEL32
    "slow": 1.0,  # to issue; see SLOW
    "products": 18.0,  # MATMUL<8x8xF32>
    "shuffles": 2.04,  # SHUFFLE_ROTATE32
    "reductions": 14.54,  # SUM<F32>
}
# CONVERT, LSHIFT32 and IMUL32 occupy a pipeline for so long; others run meanwhile.
SLOW = 4.0
SCHEDULERS = 4  # of a core; each issues for one simdgroup in a cycle
FOR_PRODUCTS = 8  # simdgroups of a core: a product has 36 cycles of latency
CORE_MEMORY = 60 * 1024  # bytes of threadgroup memory in a core
# "On-Core Data BW/Cycle" is 64 bytes: a line of 64, or half a round of 32 banks of 4.
ROUNDS_A_CYCLE = 0.5
# Lines of 64 bytes in a cycle of a core, by generation. 13, 14: as above. 15, 16: no
# figure is published. Fitted to qmv_wide of mlx#3863, one number for five times.
LINES_A_CYCLE = {13: 1.0, 14: 1.0, 15: 1.4, 16: 1.4}
# Share of the specified bandwidth that reads reach: 93 % on M3 Max, 87 % on M4 Pro
# (mlx#3852), 85 % on M3 Ultra (omlx#2238).
READABLE = 0.90
# Launches that nothing is counted for: little work, whose bytes and start count.
UNCOUNTED = ("sum of parts", "rows of experts")
# Start and end of a launch that waits for the one before it. Assumed, not published;
# the same for both sides.
LAUNCH = 3e-6


@dataclass(frozen=True)
class Chip:
    """A GPU. `size` is the last letter of its architecture, as MLX reads it."""

    name: str
    generation: int
    size: str
    cores: int
    hertz: float
    bandwidth: float  # bytes per second, as specified

    @property
    def device(self) -> simt.Device:
        return simt.Device(generation=self.generation, tier=self.size, cores=self.cores)


# Cores of the full chips. Clocks: metal-benchmarks for M1 and M2, hmc-tech.com for M3
# Max and M4; M3 and M3 Pro as M3 Max. Bandwidths: Apple's specifications.
CHIPS = tuple(
    Chip(name, generation, size, cores, 1e9 * ghz, 1e9 * bandwidth)
    for name, generation, size, cores, ghz, bandwidth in (
        ("M1", 13, "g", 8, 1.278, 68),
        ("M1 Pro", 13, "s", 16, 1.296, 200),
        ("M1 Max", 13, "s", 32, 1.296, 400),
        ("M2", 14, "g", 10, 1.398, 100),
        ("M2 Pro", 14, "s", 19, 1.398, 200),
        ("M2 Max", 14, "s", 38, 1.398, 400),
        ("M3", 15, "g", 10, 1.398, 100),
        ("M3 Pro", 15, "s", 18, 1.398, 150),
        ("M3 Max", 15, "s", 40, 1.398, 400),
        ("M4", 16, "g", 10, 1.470, 120),
        ("M4 Pro", 16, "s", 20, 1.470, 273),
        ("M4 Max", 16, "s", 40, 1.678, 546),
    )
)


@dataclass(frozen=True)
class Work:
    """One launch: threadgroups of a kernel, each over K, and its bytes."""

    kernel: str
    groups: float
    K: int
    bytes: float


@functools.cache
def counts() -> dict[str, Any]:
    return json.loads(COUNTS.read_text())


def counted(kernel: str) -> dict[str, Any]:
    """Return what a threadgroup executes; with a part of K, as with all of it."""
    kernel = kernel.replace("qmm_splitk", "qmm")
    if kernel not in counts():
        raise ValueError(
            f"[time_model] a counted kernel was required but got {kernel}."
        )
    return counts()[kernel]


def core_cycles(work: Work, chip: Chip) -> float:
    """Return the cycles in which a core executes one threadgroup, among others."""
    of_kernel = counted(work.kernel)

    def of(name: str) -> float:
        return max(0.0, of_kernel["fixed"][name] + work.K * of_kernel["per_k"][name])

    own = of_kernel["simdgroups"]
    resident = CORE_MEMORY // max(1, of_kernel["threadgroup_bytes"]) * own
    simdgroups = min(resident, max(1.0, work.groups / chip.cores) * own)
    issue = sum(CYCLES[n] * of(n) for n in CYCLES if n != "products")
    arithmetic = max(issue, SLOW * of("slow")) / plans.occupancy(simdgroups)
    products = CYCLES["products"] * of("products") / min(1.0, simdgroups / FOR_PRODUCTS)
    return max(
        (arithmetic + products) / SCHEDULERS,
        of("lines") / LINES_A_CYCLE[chip.generation],
        of("rounds") / ROUNDS_A_CYCLE,
    )


def seconds(launches: list[Work], chip: Chip) -> float:
    """Return the predicted time of launches that wait for each other."""
    total = 0.0
    for work in launches:
        memory = work.bytes / (READABLE * chip.bandwidth)
        computing = 0.0
        if work.kernel not in UNCOUNTED:
            # As long as the core with the most threadgroups.
            turns = -(-work.groups // chip.cores)
            computing = turns * core_cycles(work, chip) / chip.hertz
        total += LAUNCH + max(memory, computing)
    return total


def matrix_bytes(N: int, K: int, bits: int, of_group: float = 4 / 64) -> float:
    """Return the bytes of a matrix, with a scale and a bias for each group of 64.

    Args:
        N: Rows.
        K: Columns.
        bits: Width of a code.
        of_group: Bytes of scales and biases for each weight.
    """
    return N * K * (bits / 8 + of_group)


def bytes_of(p: simt.Problem | simt.GatherProblem) -> float:
    """Return the bytes of a matrix of a problem: modes of floats have scales alone."""
    of_group = 4 / 64 if p.mode == "affine" else 1 / p.group_size
    return matrix_bytes(p.N, p.K, p.bits, of_group)


def row_bytes(M: int, N: int, K: int) -> float:
    """Return the bytes of x and y."""
    return 2.0 * M * (N + K)


# ---- our kernels ----------------------------------------------------------------


def ours(p: simt.Problem, launches: list[simt.Launch]) -> list[Work]:
    """Return the work of a plan of ours."""
    first = launches[0]
    x, y, z = first.threadgroups
    passes = y if "_bm" in first.kernel else 1
    data = passes * bytes_of(p) + row_bytes(p.M, p.N, p.K)
    if len(launches) == 1:
        return [Work(first.kernel, x * y * z, p.K, data)]
    # A split K: SplitParams has the columns of a part. Sums are written, then read.
    part = struct.unpack_from("6i", first.params)[3]
    sums = first.sums_bytes
    return [
        Work(first.kernel, x * y * z, part, data + sums),
        Work("sum of parts", 1, 0, sums + 2.0 * p.M * p.N),
    ]


# ---- MLX 0.32.4's dispatch ------------------------------------------------------


def vector_limit(N: int, K: int, chip: Chip) -> int:
    """Return the rows from which MLX takes tiles: get_qmv_batch_limit of 0.32.4."""
    largest = max(N, K)
    if chip.generation >= 15:
        limits = (13, 15, 13)
    else:
        limits = (14, 10, 7 if (chip.generation, chip.size) == (13, "s") else 6)
    return limits[0 if largest <= 2048 else 1 if largest <= 4096 else 2]


def split_parts(M: int, N: int, K: int, group: int = 64) -> int:
    """Return the parts of K of MLX's qmm_splitk: as many as make 512 threadgroups."""
    tiles = -(-N // 32) * -(-M // 32)
    parts = min(max(1, 512 // tiles), K // group)
    while K % (parts * group):
        parts -= 1
    return parts


def mlx(p: simt.Problem, chip: Chip) -> list[Work]:
    """Return the work of MLX's operation."""
    M, N, K = p.M, p.N, p.K
    matrix, rows = bytes_of(p), row_bytes(M, N, K)
    columns = -(-N // 8)
    if vector_limit(N, K, chip) > M:
        if M == 1 or chip.generation < 15:
            name = name_of("qmv_fast", p.mode, p.bits)
            return [Work(name, M * columns, K, matrix + rows)]
        vectors = -(-M // -(-M // 5))
        name = name_of(f"qmv_wide_nv{vectors}", p.mode, p.bits)
        return [Work(name, -(-M // vectors) * columns, K, matrix + rows)]
    tiles = -(-N // 32) * -(-M // 32)
    data = -(-M // 32) * matrix + rows
    parts = split_parts(M, N, K, max(32, p.group_size))
    name = name_of("qmm_t", p.mode, p.bits)
    if parts == 1:
        return [Work(name, tiles, K, data)]
    sums = 4.0 * parts * M * N
    return [
        Work(name, tiles * parts, K // parts, data + sums),
        Work("sum of parts", 1, 0, sums + 2.0 * M * N),
    ]


# ---- products with experts ------------------------------------------------------


def expert_tiles(g: simt.GatherProblem, rows: int) -> float:
    """Return the tiles of all experts; the last of each is half empty on average."""
    return g.experts * max(1.0, g.B / g.experts / rows + 0.5)


def gathered(g: simt.GatherProblem, chip: Chip) -> tuple[list[Work], list[Work]]:
    """Return the work of ours and of MLX; each expert has about as many rows."""
    (launch,) = plans.plan_gather(g, chip.device) or ()
    touched = min(g.B, g.experts)
    data = touched * bytes_of(g) + row_bytes(g.B, g.N, g.K)
    if "_bm" in launch.kernel:
        rows = int(launch.kernel.split("_bm")[1].split("_")[0])
        mine, theirs = (-(-g.N // 32) * expert_tiles(g, r) for r in (rows, 16))
        name, before = "qmm_rhs", [Work("rows of experts", 1, 0, 0.0)]
    else:
        mine, theirs = math.prod(launch.threadgroups), g.B * -(-g.N // 8)
        name, before = "qmv_fast", []
    mlx = Work(name_of(f"gather_{name}", g.mode, g.bits), theirs, g.K, data)
    return [Work(launch.kernel, mine, g.K, data)], [*before, mlx]

"""Give access to the planner, the kernel list and the kernel texts of csrc/core."""

from __future__ import annotations

import ctypes
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mlx_nibble.formats import FLOAT_MODES, MODES

from . import build
from .source import Unit, translate
from .toolchain import ROOT

DTYPES = ("float32", "float16", "bfloat16")  # in the order of csrc/core/dtype.h
# With those that only scales have.
SCALE_DTYPES = (*DTYPES, "e8m0", "e4m3")
SCALES_OF = {"mxfp4": "e8m0", "nvfp4": "e4m3", "mxfp8": "e8m0"}
MODE_NAMES = tuple(MODES)  # in the order of nibble::Mode
# The order of nibble::Planner in csrc/core/families.h.
PLANNERS = (
    "matmul",
    "gather",
    "joint",
    "swiglu",
    "gather_swiglu",
    "dequantize",
    "gradient",
    "gather_gradient",
)


@dataclass(frozen=True)
class Problem:
    """y = x @ w_hat.T (+ bias + residual); the fields of csrc/core/problem.h.

    In a problem of dequantization, M is the number of rows of w.
    """

    M: int = 1
    N: int = 1
    K: int = 64
    batch_size: int = 1
    batch_count: int = 1
    batch_repeat: int = 1
    dtype: str = "float16"
    scale_dtype: str = "float16"
    bits: int = 4
    group_size: int = 64
    mode: str = "affine"
    transpose: bool = True
    batch_invariant: bool = False
    bias: bool = False
    residual: bool = False
    half_tiles: bool = False


@dataclass(frozen=True)
class GatherProblem:
    """y[b] = x[lhs[b]] @ w_hat[rhs[b]] (.T); the fields of csrc/core/problem.h."""

    B: int = 1
    M: int = 1
    N: int = 1
    K: int = 64
    experts: int = 1
    dtype: str = "float16"
    scale_dtype: str = "float16"
    bits: int = 4
    group_size: int = 64
    mode: str = "affine"
    sorted: bool = False
    transpose: bool = True
    batch_invariant: bool = False


@dataclass(frozen=True)
class Device:
    """The fields of csrc/core/device_profile.h, with the same defaults."""

    cuda: bool = False
    generation: int = 13
    tier: str = "g"
    max_threads: int = 1024
    max_threadgroup_bytes: int = 32768
    cores: int = 0
    neural: bool = False
    tf32: bool = True
    wgmma: bool = False


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel; the fields of csrc/core/launch_plan.h."""

    kernel: str
    threadgroups: tuple[int, int, int]
    threads: tuple[int, int, int]
    buffers: tuple[str, ...]
    params: bytes = b""
    threadgroup_bytes: int = 0  # to bind as [[threadgroup(0)]]
    declared_bytes: int = 0  # of threadgroup variables, as planned
    sums_bytes: int = 0


class _Problem(ctypes.Structure):
    _fields_ = [(field.name, ctypes.c_int32) for field in fields(Problem)]


class _GatherProblem(ctypes.Structure):
    _fields_ = [(field.name, ctypes.c_int32) for field in fields(GatherProblem)]


class _Profile(ctypes.Structure):
    _fields_ = [
        ("cuda", ctypes.c_int32),
        ("generation", ctypes.c_int32),
        ("tier", ctypes.c_char),
        ("max_threads", ctypes.c_uint32),
        ("max_threadgroup_bytes", ctypes.c_uint32),
        ("cores", ctypes.c_uint32),
        ("neural", ctypes.c_int32),
        ("tf32", ctypes.c_int32),
        ("wgmma", ctypes.c_int32),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """Return the executor, loaded globally: kernels find their runtime in it."""
    lib = ctypes.CDLL(str(build.executor()), mode=ctypes.RTLD_GLOBAL)
    for name in (
        "plan_matmul",
        "plan_choice",
        "plan_dequantize",
        "plan_gather",
        "columns_for_mlx",
        "left_to_mlx",
        "gather_left_to_mlx",
        "plan_swiglu",
        "plan_gather_swiglu",
        "plan_joint",
        "plan_gradient",
        "plan_gather_gradient",
        "gradient_left_to_mlx",
        "gather_gradient_left_to_mlx",
        "candidates",
        "kernels_of_any_shape",
        "gather_kernels_of_any_shape",
        "instances",
        "tile_costs",
        "kernel_source",
        "dispatch",
    ):
        getattr(lib, f"simt_{name}").restype = ctypes.c_char_p
    lib.simt_occupancy.argtypes = [ctypes.c_double]
    lib.simt_occupancy.restype = ctypes.c_double
    lib.simt_read_kernels.restype = None
    lib.simt_read_kernels(str(ROOT / "kernels").encode())
    return lib


def _structure(p: Problem | GatherProblem) -> _Problem | _GatherProblem:
    kind = _Problem if isinstance(p, Problem) else _GatherProblem
    values = asdict(p)
    for name, names in (
        ("dtype", DTYPES),
        ("scale_dtype", SCALE_DTYPES),
        ("mode", MODE_NAMES),
    ):
        values[name] = names.index(values[name])
    return kind(**values)


def _profile(device: Device) -> _Profile:
    return _Profile(
        device.cuda,
        device.generation,
        device.tier.encode(),
        device.max_threads,
        device.max_threadgroup_bytes,
        device.cores,
        device.neural,
        device.tf32,
        device.wgmma,
    )


def _ask(
    function: str, p: Problem | GatherProblem, device: Device, *more: bytes | int
) -> Any:
    problem, profile = _structure(p), _profile(device)
    answer = getattr(library(), function)(
        ctypes.byref(problem), ctypes.byref(profile), *more
    )
    return json.loads(answer)


def _launches(answer: list[dict[str, Any]]) -> list[Launch]:
    return [
        Launch(
            kernel=launch["kernel"],
            threadgroups=tuple(launch["threadgroups"]),
            threads=tuple(launch["threads"]),
            buffers=tuple(launch["buffers"]),
            params=bytes.fromhex(launch["params"]),
            declared_bytes=launch["threadgroup_bytes"],
            sums_bytes=launch["sums_bytes"],
        )
        for launch in answer
    ]


def plan_matmul(problem: Problem, device: Device | None = None) -> list[Launch] | None:
    """Return the launches that core plans; None where MLX's operation is used."""
    answer = _ask("simt_plan_matmul", problem, device or Device())
    return None if answer is None else _launches(answer)


def plan_choice(
    problem: Problem, choice: str, device: Device | None = None
) -> list[Launch] | None:
    """Return the launches that core plans where a tuned table has this choice."""
    answer = _ask("simt_plan_choice", problem, device or Device(), choice.encode())
    return None if answer is None else _launches(answer)


def plan_gather(
    problem: GatherProblem, device: Device | None = None
) -> list[Launch] | None:
    answer = _ask("simt_plan_gather", problem, device or Device())
    return None if answer is None else _launches(answer)


def left_to_mlx(problem: Problem | GatherProblem, device: Device) -> bool:
    """Return whether MLX's operation computes this, though core has a plan."""
    gather = "gather_" if isinstance(problem, GatherProblem) else ""
    return _ask(f"simt_{gather}left_to_mlx", problem, device)


def columns_for_mlx(problem: Problem, device: Device) -> int:
    """Return the columns of w that MLX's own operation takes."""
    return _ask("simt_columns_for_mlx", problem, device)


def tile_costs(mode: str, bits: int) -> list[tuple[float, ...]]:
    """Return the costs of tiles (csrc/core/plan/cost.h), in planner_api.cpp's order."""
    answer = library().simt_tile_costs(MODE_NAMES.index(mode), bits)
    return list(map(tuple, json.loads(answer)))


def occupancy(simdgroups: float) -> float:
    """Return the planner's share of a core's full rate with these simdgroups."""
    return library().simt_occupancy(simdgroups)


def plan_swiglu(
    problem: Problem | GatherProblem, device: Device | None = None
) -> list[Launch] | None:
    """Plan silu(x @ gate.T) * (x @ up.T), dense or gathered."""
    gathered = "gather_" if isinstance(problem, GatherProblem) else ""
    answer = _ask(f"simt_plan_{gathered}swiglu", problem, device or Device())
    return None if answer is None else _launches(answer)


def plan_gradient(
    problem: Problem | GatherProblem, device: Device | None = None
) -> list[Launch] | None:
    """Plan the gradients of the scales and biases of a product."""
    gathered = "gather_" if isinstance(problem, GatherProblem) else ""
    answer = _ask(f"simt_plan_{gathered}gradient", problem, device or Device())
    return None if answer is None else _launches(answer)


def gradient_left_to_mlx(problem: Problem | GatherProblem, device: Device) -> bool:
    """Return whether a dense product computes these gradients faster."""
    gathered = "gather_" if isinstance(problem, GatherProblem) else ""
    return _ask(f"simt_{gathered}gradient_left_to_mlx", problem, device)


def plan_joint(
    products: Sequence[Problem], device: Device | None = None
) -> list[Launch] | None:
    """Plan products of one x in one launch."""
    problems = (_Problem * len(products))(*map(_structure, products))
    profile = _profile(device or Device())
    answer = library().simt_plan_joint(problems, len(products), ctypes.byref(profile))
    launches = json.loads(answer)
    return None if launches is None else _launches(launches)


def candidates(problem: Problem, device: Device | None = None) -> list[list[Launch]]:
    """Return every plan that core offers to a tuner, its default first."""
    answer = _ask("simt_candidates", problem, device or Device())
    return [_launches(plan) for plan in answer]


def plan_dequantize(
    problem: Problem, device: Device | None = None
) -> list[Launch] | None:
    answer = _ask("simt_plan_dequantize", problem, device or Device())
    return None if answer is None else _launches(answer)


def kernels_of_any_shape(problem: Problem | GatherProblem, planner: str) -> list[str]:
    """Return all kernels that `planner` may use for a problem, whatever its sizes."""
    gather = "gather_" if isinstance(problem, GatherProblem) else ""
    function = f"simt_{gather}kernels_of_any_shape"
    return _ask(function, problem, Device(), PLANNERS.index(planner))


@functools.cache
def instances(cuda: bool = False) -> tuple[str, ...]:
    """Return the name of every kernel that a plan for Metal, or for CUDA, can name."""
    answer = json.loads(library().simt_instances(int(cuda)))
    return tuple(entry["name"] for entry in answer)


def kernel_source(name: str) -> str:
    """Return the text that a Mac, or NVRTC, compiles for this kernel."""
    text = library().simt_kernel_source(name.encode()).decode()
    if not text:
        raise ValueError(f"[simt] the name of a kernel was required but got {name}.")
    return text


def family_name(kernel: str) -> str:
    """Return the part of a kernel's name before its types."""
    return re.split(r"_(?:f32|f16|bf16)_", kernel)[0]


def mode_of(kernel: str) -> str:
    """Return the mode in a kernel's name."""
    labels = {"symmetric": "_sym"} | {mode: f"_{mode}" for mode in FLOAT_MODES}
    return next((m for m, label in labels.items() if label in kernel), "affine")


def has_scales(mode: str, scale_dtype: str) -> bool:
    """Return whether a mode may have scales of this type."""
    return SCALES_OF.get(mode, scale_dtype if scale_dtype in DTYPES else "") == (
        scale_dtype
    )


@functools.cache
def families() -> tuple[str, ...]:
    """Return the name of every family, in the order of csrc/core/families.cpp."""
    return tuple(dict.fromkeys(map(family_name, instances())))


def unit_name(kernel: str) -> str:
    """Return the name of a kernel's unit of compilation: family, types and bits."""
    return re.split(r"(?<=_b\d)_", kernel)[0]


@functools.cache
def unit_names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(unit_name, instances())))


@functools.cache
def _kernels_by_unit() -> dict[str, tuple[str, ...]]:
    by_unit: dict[str, list[str]] = {}
    for kernel in instances():
        by_unit.setdefault(unit_name(kernel), []).append(kernel)
    return {name: tuple(kernels) for name, kernels in by_unit.items()}


def kernels_of_unit(unit: str) -> tuple[str, ...]:
    return _kernels_by_unit()[unit]


def representatives(unit: str, turn: int) -> tuple[str, ...]:
    """Return kernels with each shape of a unit, and two of its formats or more.

    Args:
        unit: Name of the unit.
        turn: Number of the unit. Group sizes and symmetry take turns with it.
    """
    shapes: dict[str, list[str]] = {}
    for kernel in sorted(kernels_of_unit(unit)):
        found = re.match(r"_g\d+(_sym|_[a-z]+fp\d)?", kernel[len(unit) :])
        assert found, kernel
        shapes.setdefault(kernel[len(unit) + found.end() :], []).append(kernel)
    of_shape = list(shapes.values())
    chosen = []
    for i in range(max(2, len(of_shape))):
        formats = of_shape[i % len(of_shape)]
        chosen.append(formats[(turn + i) % len(formats)])
    return tuple(dict.fromkeys(chosen))


def unit_text(kernels: Sequence[str]) -> str:
    """Return the Metal source of kernels of a unit: one header, many instances."""
    header, lines = "", []
    for kernel in kernels:
        header, instance = kernel_source(kernel).split("template [[host_name", 1)
        lines.append("template [[host_name" + instance)
    return header + "".join(lines)


@functools.cache
def unit(kernels: tuple[str, ...]) -> Unit:
    return translate(unit_text(kernels))

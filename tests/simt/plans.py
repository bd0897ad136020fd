"""The project's own planner, kernel list and kernel texts, from csrc/core."""

from __future__ import annotations

import ctypes
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from . import build
from .source import Unit, translate
from .toolchain import ROOT

DTYPES = ("float32", "float16", "bfloat16")  # in the order of csrc/core/dtype.h


@dataclass(frozen=True)
class Problem:
    """y = x @ w_hat.T (+ bias + residual); the fields of csrc/core/problem.h.

    As a problem of dequantization, M is the number of rows of w.
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
    symmetric: bool = False
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
    symmetric: bool = False
    sorted: bool = False
    transpose: bool = True
    batch_invariant: bool = False


@dataclass(frozen=True)
class Device:
    """The fields of csrc/core/device_profile.h, with the same defaults."""

    generation: int = 13
    tier: str = "g"
    max_threads: int = 1024
    max_threadgroup_bytes: int = 32768


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel; the fields of csrc/core/launch_plan.h."""

    kernel: str
    threadgroups: tuple[int, int, int]
    threads: tuple[int, int, int]
    buffers: tuple[str, ...]
    params: bytes = b""
    threadgroup_bytes: int = 0
    sums_bytes: int = 0


class _Problem(ctypes.Structure):
    _fields_ = [(field.name, ctypes.c_int32) for field in fields(Problem)]


class _GatherProblem(ctypes.Structure):
    _fields_ = [(field.name, ctypes.c_int32) for field in fields(GatherProblem)]


class _Profile(ctypes.Structure):
    _fields_ = [
        ("generation", ctypes.c_int32),
        ("tier", ctypes.c_char),
        ("max_threads", ctypes.c_uint32),
        ("max_threadgroup_bytes", ctypes.c_uint32),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """The executor; global, for kernels find their runtime in it."""
    lib = ctypes.CDLL(str(build.executor()), mode=ctypes.RTLD_GLOBAL)
    for name in (
        "plan_matmul",
        "plan_choice",
        "plan_dequantize",
        "plan_gather",
        "plan_swiglu",
        "plan_gather_swiglu",
        "plan_joint",
        "candidates",
        "instances",
        "kernel_source",
        "dispatch",
    ):
        getattr(lib, f"simt_{name}").restype = ctypes.c_char_p
    lib.simt_read_kernels.restype = None
    lib.simt_read_kernels(str(ROOT / "kernels").encode())
    return lib


def _structure(p: Problem | GatherProblem) -> _Problem | _GatherProblem:
    kind = _Problem if isinstance(p, Problem) else _GatherProblem
    values = (getattr(p, field.name) for field in fields(p))
    return kind(*(DTYPES.index(v) if isinstance(v, str) else v for v in values))


def _profile(device: Device) -> _Profile:
    return _Profile(
        device.generation,
        device.tier.encode(),
        device.max_threads,
        device.max_threadgroup_bytes,
    )


def _ask(
    function: str, p: Problem | GatherProblem, device: Device, *more: bytes
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
            threadgroup_bytes=launch["threadgroup_bytes"],
            sums_bytes=launch["sums_bytes"],
        )
        for launch in answer
    ]


def plan_matmul(problem: Problem, device: Device | None = None) -> list[Launch] | None:
    """What core plans; None where MLX's own op is to be used."""
    answer = _ask("simt_plan_matmul", problem, device or Device())
    return None if answer is None else _launches(answer)


def plan_choice(
    problem: Problem, choice: str, device: Device | None = None
) -> list[Launch] | None:
    """What core plans where a tuned table has this choice."""
    answer = _ask("simt_plan_choice", problem, device or Device(), choice.encode())
    return None if answer is None else _launches(answer)


def plan_gather(
    problem: GatherProblem, device: Device | None = None
) -> list[Launch] | None:
    answer = _ask("simt_plan_gather", problem, device or Device())
    return None if answer is None else _launches(answer)


def plan_swiglu(problem: Problem | GatherProblem) -> list[Launch] | None:
    """silu(x @ gate.T) * (x @ up.T), dense or gathered."""
    gathered = "gather_" if isinstance(problem, GatherProblem) else ""
    answer = _ask(f"simt_plan_{gathered}swiglu", problem, Device())
    return None if answer is None else _launches(answer)


def plan_joint(
    products: Sequence[Problem], device: Device | None = None
) -> list[Launch] | None:
    """Products of one x in one launch."""
    problems = (_Problem * len(products))(*map(_structure, products))
    profile = _profile(device or Device())
    answer = library().simt_plan_joint(problems, len(products), ctypes.byref(profile))
    launches = json.loads(answer)
    return None if launches is None else _launches(launches)


def candidates(problem: Problem, device: Device | None = None) -> list[list[Launch]]:
    """Every plan that core offers to a tuner, its default first."""
    answer = _ask("simt_candidates", problem, device or Device())
    return [_launches(plan) for plan in answer]


def plan_dequantize(
    problem: Problem, device: Device | None = None
) -> list[Launch] | None:
    answer = _ask("simt_plan_dequantize", problem, device or Device())
    return None if answer is None else _launches(answer)


@functools.cache
def instances() -> tuple[str, ...]:
    """The name of every kernel that a plan can hold."""
    return tuple(entry["name"] for entry in json.loads(library().simt_instances()))


def kernel_source(name: str) -> str:
    """The text that a Mac compiles for this kernel."""
    text = library().simt_kernel_source(name.encode()).decode()
    if not text:
        raise ValueError(f"[simt] no kernel is called {name}")
    return text


def unit_name(kernel: str) -> str:
    """What kernels share that are compiled together: family, types and bits."""
    return re.split(r"(?<=_b\d)_", kernel)[0]


@functools.cache
def unit_names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(unit_name, instances())))


def unit_text(unit: str) -> str:
    """The Metal source of all kernels of a unit: one header, many instances."""
    header, lines = "", []
    for kernel in instances():
        if unit_name(kernel) == unit:
            header, instance = kernel_source(kernel).split("template [[host_name", 1)
            lines.append("template [[host_name" + instance)
    return header + "".join(lines)


@functools.cache
def unit(name: str) -> Unit:
    return translate(unit_text(name))

"""Runs launches on the CPU and says what they did wrong."""

from __future__ import annotations

import ctypes
import functools
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import build
from .plans import Device, Launch, kernel_source, library
from .source import Unit, flatten, translate

# A float, half or bfloat that no arithmetic produces: a NaN with all bits set.
_UNWRITTEN = 0xFF


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("writable", ctypes.c_uint32),
        ("alignment", ctypes.c_uint32),
    ]


class _Dispatch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("entry", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_uint32),
        ("threadgroup_bytes", ctypes.c_uint32),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("max_threads", ctypes.c_uint32),
        ("max_threadgroup_bytes", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
    ]


_PARTIAL_SIMDGROUPS = 1
_INSTRUMENTED = 2
_REDUNDANT_WRITES = 4


@dataclass(frozen=True)
class Options:
    """How to run.

    seed: Order in which threads run between the places where they must meet.
    instrumented: Watch every access: races, uninitialised reads, counters.
    partial_simdgroups: Lanes that have returned may miss a simd operation.
    redundant_writes: Threads may write one place unordered, if all write one value.
    alignment: Of the first byte of each buffer, exactly.
    """

    seed: int = 0
    instrumented: bool = False
    partial_simdgroups: bool = False
    redundant_writes: bool = False
    alignment: int = 16
    device: Device = field(default_factory=Device)


@dataclass(frozen=True)
class Finding:
    """One thing that a kernel did wrong."""

    kind: str
    message: str


class KernelError(Exception):
    """A kernel did something that Metal does not define."""

    def __init__(self, kernel: str, findings: Sequence[Finding]) -> None:
        lines = [f"{f.kind}: {f.message}" for f in findings]
        super().__init__(f"{kernel}\n  " + "\n  ".join(lines))
        self.kernel = kernel
        self.findings = tuple(findings)


@dataclass(frozen=True)
class Outcome:
    """What a launch wrote, by operand, and what it did on the way."""

    outputs: dict[str, np.ndarray]
    counters: dict[str, int]
    memory: list[dict[str, Any]]


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    """A compiled unit; the executor must be there first."""
    library()
    return ctypes.CDLL(str(path))


def compile_metal(path: Path, *, instrumented: bool = False) -> ctypes.CDLL:
    """Kernels of any Metal file, for run(): the plain ones and the instantiated.

    Raises:
        toolchain.CompileError: It is not the Metal that the strict front end takes.
    """
    unit = translate(flatten([path], path.resolve().parent))
    return load(build.compile_unit(unit, instrumented=instrumented))


# Libraries of whole units, by kernel and build.
_in_units: dict[tuple[str, bool], Path] = {}


def compile_planned(unit: Unit, *, instrumented: bool) -> Path:
    """Compile many of the planned kernels at once; run() then finds them there."""
    path = build.compile_unit(unit, instrumented=instrumented)
    _in_units.update({(kernel, instrumented): path for kernel in unit.kernels})
    return path


@functools.cache
def _planned_kernel(name: str, instrumented: bool) -> ctypes.CDLL:
    path = _in_units.get((name, instrumented))
    if not path:
        unit = translate(kernel_source(name))
        path = build.compile_unit(unit, instrumented=instrumented)
    return load(path)


def run(
    launch: Launch,
    operands: Mapping[str, np.ndarray],
    outputs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    options: Options | None = None,
    kernels: ctypes.CDLL | None = None,
) -> Outcome:
    """Run one launch.

    Args:
        launch: From plans.plan_matmul, or made by hand for a kernel of one's own.
        operands: Input arrays by the names in launch.buffers; read-only to the kernel.
        outputs: Shape and type of what the kernel writes, by the same names. Every
            element must be written.
        options: How to run.
        kernels: Library that holds the kernel; by default the planned one.

    Raises:
        KernelError: The kernel did something that Metal does not define.
    """
    options = options or Options()
    kernels = kernels or _planned_kernel(launch.kernel, options.instrumented)
    inputs = {name: np.ascontiguousarray(a) for name, a in operands.items()}
    written = {
        name: np.full(int(np.prod(shape)) * dtype.itemsize, _UNWRITTEN, np.uint8)
        .view(dtype)
        .reshape(shape)
        for name, (shape, dtype) in outputs.items()
    }
    bound: list[tuple[str, np.ndarray]] = []
    for name in launch.buffers:
        bound.append((name, written[name] if name in written else inputs[name]))
    if launch.params:
        bound.append(("params", np.frombuffer(launch.params, np.uint8)))
    report = _dispatch(launch, bound, set(written), options, kernels)
    findings = [_finding(f) for f in report["findings"]]
    if not findings:
        findings = _unwritten(written)
    if findings:
        raise KernelError(launch.kernel, findings)
    return Outcome(written, report["counters"], _by_operand(report.get("memory", [])))


def _by_operand(regions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One region an operand: where a kernel has no use for a binding, a plan binds
    an operand once more, and each binding has memory of its own here."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for region in regions:
        key = (region["space"], region["name"])
        if key not in merged:
            merged[key] = dict(region)
            continue
        for what, count in region.items():
            if isinstance(count, int) and what != "bytes":
                merged[key][what] += count
    return list(merged.values())


def _dispatch(
    launch: Launch,
    bound: Sequence[tuple[str, np.ndarray]],
    writable: set[str],
    options: Options,
    kernels: ctypes.CDLL,
) -> dict[str, Any]:
    buffers = (_Buffer * len(bound))(
        *(
            _Buffer(
                name.encode(),
                array.ctypes.data,
                array.nbytes,
                name in writable,
                16 if name == "params" else options.alignment,
            )
            for name, array in bound
        )
    )
    dispatch = _Dispatch(
        kernel=launch.kernel.encode(),
        entry=ctypes.cast(getattr(kernels, launch.kernel), ctypes.c_void_p),
        buffers=buffers,
        buffer_count=len(bound),
        threadgroup_bytes=launch.threadgroup_bytes,
        grid=(ctypes.c_uint32 * 3)(*launch.threadgroups),
        threads=(ctypes.c_uint32 * 3)(*launch.threads),
        max_threads=options.device.max_threads,
        max_threadgroup_bytes=options.device.max_threadgroup_bytes,
        flags=options.partial_simdgroups * _PARTIAL_SIMDGROUPS
        | options.instrumented * _INSTRUMENTED
        | options.redundant_writes * _REDUNDANT_WRITES,
        seed=options.seed,
    )
    return json.loads(library().simt_dispatch(ctypes.byref(dispatch)))


def _finding(report: dict[str, Any]) -> Finding:
    where = [f"threadgroup ({', '.join(map(str, report['group']))})"]
    if report["thread"] >= 0:
        where.append(f"thread {report['thread']}")
    message = report["text"]
    places = [_line(place) for place in report["code"] if place]
    if places:
        message += " at " + " and at ".join(places)
    if report["count"] > 1:
        message += f", {report['count']} times"
    return Finding(report["kind"], f"{message} [{', '.join(where)}]")


@functools.cache
def _line_of(path: str, offset: int) -> str:
    """file:line of the innermost frame that is the kernel's own text."""
    command = ["addr2line", "-i", "-e", path, hex(offset)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{Path(path).name}+{offset:#x}"
    # Look through the stand-in library, and what has no line, to the kernel's text.
    own = [
        frame.split(" (discriminator")[0].removeprefix("././").removeprefix("./")
        for frame in answer.stdout.split("\n")
        if frame and "/include/simt/" not in frame and "?" not in frame
    ]
    return own[0] if own else f"{Path(path).name}+{offset:#x}"


def _line(place: dict[str, Any]) -> str:
    return _line_of(place["object"], place["offset"])


def _unwritten(written: Mapping[str, np.ndarray]) -> list[Finding]:
    findings = []
    for name, array in written.items():
        raw = array.view(np.uint8).reshape(-1, array.dtype.itemsize)
        missing = np.flatnonzero((raw == _UNWRITTEN).all(axis=1))
        if missing.size:
            at = np.unravel_index(missing[0], array.shape)
            text = f"{missing.size} of {len(raw)} elements of {name}, the first at "
            findings.append(Finding("unwritten", text + str(tuple(int(i) for i in at))))
    return findings

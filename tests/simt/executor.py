"""Runs launches on the CPU and reports their errors."""

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

# A byte of a NaN that no arithmetic on float, half or bfloat produces: all bits set.
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
    """Options of a run.

    Attributes:
        seed: Seed of the order in which threads run between synchronizations.
        instrumented: Watch every access: races, uninitialised reads, counters.
        partial_simdgroups: Lanes that have returned may miss a simd operation.
        redundant_writes: Threads may write one address unordered, if the value is
            the same.
        alignment: Exact alignment of the first byte of each buffer.
        device: Limits of the device.
    """

    seed: int = 0
    instrumented: bool = False
    partial_simdgroups: bool = False
    redundant_writes: bool = False
    alignment: int = 16
    device: Device = field(default_factory=Device)


@dataclass(frozen=True)
class Finding:
    """One error of a kernel."""

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
    """The outputs of a launch by operand, its counters, and its memory traffic."""

    outputs: dict[str, np.ndarray]
    counters: dict[str, int]
    memory: list[dict[str, Any]]


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    """Load a compiled unit, after the executor that it links to."""
    library()
    return ctypes.CDLL(str(path))


def compile_metal(path: Path, *, instrumented: bool = False) -> ctypes.CDLL:
    """Compile the plain and the instantiated kernels of any Metal file, for run().

    Raises:
        toolchain.CompileError: The strict front end refuses the file.
    """
    unit = translate(flatten([path], path.resolve().parent))
    return load(build.compile_unit(unit, instrumented=instrumented))


# Libraries of whole units, by kernel and build.
_in_units: dict[tuple[str, bool], Path] = {}


def compile_planned(unit: Unit, *, instrumented: bool) -> Path:
    """Compile many planned kernels at once; run() then uses this library."""
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
        launch: Launch of a plan, or one made by hand for another kernel.
        operands: Input arrays by the names in launch.buffers; read-only to the kernel.
        outputs: Shape and type of each output, by the same names. The kernel must
            write every element.
        options: Options of the run.
        kernels: Library with the kernel; by default that of the planned kernel.

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
    """Merge the regions of each operand.

    A plan binds an operand twice where a kernel does not use the second binding, and
    here each binding has its own memory.
    """
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
    """Return file:line of the innermost frame in the kernel's own text."""
    command = ["addr2line", "-i", "-e", path, hex(offset)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{Path(path).name}+{offset:#x}"
    # Skip frames of the stand-in library and frames without a line.
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

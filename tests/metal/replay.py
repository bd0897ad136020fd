"""Compute recorded dispatches with the SIMT bench, which replaces Apple's GPU."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from tests import simt
from tests.simt import build, executor, source


@functools.cache
def _library(text: str) -> ctypes.CDLL:
    """Compile the Metal source of a kernel for the SIMT bench."""
    return executor.load(build.compile_unit(source.translate(text)))


def as_launch(dispatch: Any) -> simt.Launch:
    """Return a dispatch as a launch; its operands are named by index."""
    arrays = sorted(dispatch.arrays, key=lambda array: array.index)
    ((params_index, params),) = dispatch.bytes
    assert [a.index for a in arrays] == list(range(params_index))
    return simt.Launch(
        kernel=dispatch.kernel,
        threadgroups=dispatch.threadgroups,
        threads=dispatch.threads,
        buffers=tuple(str(a.index) for a in arrays),
        params=params,
    )


def execute(dispatch: Any) -> None:
    """Compute a dispatch and write its output arrays, as a GPU would."""
    memory = {
        str(a.index): np.ctypeslib.as_array(
            (ctypes.c_uint8 * a.nbytes).from_address(a.address + a.offset)
        ).view(f"u{a.itemsize}")
        for a in dispatch.arrays
    }
    output_names = {str(a.index) for a in dispatch.arrays if a.output}
    outcome = simt.run(
        as_launch(dispatch),
        {name: a for name, a in memory.items() if name not in output_names},
        {name: (memory[name].shape, memory[name].dtype) for name in output_names},
        kernels=_library(dispatch.source),
    )
    for name in output_names:
        memory[name][:] = outcome.outputs[name]


def recorded(recorder, compute):
    """Evaluate the node that `compute` builds. Returns its output and dispatches."""
    dispatches = []
    recorder.set_executor(dispatches.append)
    y = compute()
    recorder.evaluate(y)
    recorder.set_executor(None)
    return y, dispatches

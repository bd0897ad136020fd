"""The SIMT bench: Metal kernels run, and are watched, on a Linux machine.

docs/simt.md tells how it works and what it cannot see.
"""

from .executor import Finding, KernelError, Options, Outcome, compile_metal, run
from .numbers import decode, encode, rounded
from .plans import (
    Device,
    GatherProblem,
    Launch,
    Problem,
    candidates,
    instances,
    kernel_source,
    plan_dequantize,
    plan_gather,
    plan_joint,
    plan_matmul,
    plan_swiglu,
)
from .products import dequantize, matmul

__all__ = [
    "Device",
    "Finding",
    "GatherProblem",
    "KernelError",
    "Launch",
    "Options",
    "Outcome",
    "Problem",
    "candidates",
    "compile_metal",
    "decode",
    "dequantize",
    "encode",
    "instances",
    "kernel_source",
    "matmul",
    "plan_dequantize",
    "plan_gather",
    "plan_joint",
    "plan_matmul",
    "plan_swiglu",
    "rounded",
    "run",
]

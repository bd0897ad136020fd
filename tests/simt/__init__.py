"""The SIMT bench: runs and checks Metal kernels on a Linux machine.

README.md beside this file is the guide. Everything public is imported here.
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
from .toolchain import CompileError

__all__ = [
    "CompileError",
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

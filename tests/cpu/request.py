"""A request of runner.cpp: its integers and the names of its arrays."""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from typing import Any

from mlx_nibble.formats import MODES
from tests.support.oracle import FloatWeights, Weights

# In the orders of runner.cpp.
OPERATIONS = ["matmul", "dequantize", "swiglu", "gather", "gather_swiglu"]
OPERATIONS += ["plan", "plan_gather", "plan_attention"]
OPERATIONS += ["rms_norm", "layer_swiglu", "log_sum_exp", "arg_max", "attention"]
OPERATIONS += ["group_gradients"]
ACTIVATIONS = ["exact", "int16", "int8"]
ACTIVATIONS += ["bfloat16", "bfloat16_by_pair", "bfloat16_pair"]
ARRAYS = ["w", "scales", "biases", "up_w", "up_scales", "up_biases"]
ARRAYS += ["x", "bias", "residual", "lhs", "rhs"]
DTYPES = ["float32", "float16", "bfloat16"]
# Modes of floats: the numbers of Mode in format.h, and of Dtype in dtype.h.
FLOAT_MODES = {"mxfp4": (2, 3), "nvfp4": (3, 4), "mxfp8": (4, 3)}


@dataclass(frozen=True)
class Types:
    """The types of x and the result, and of scales and biases."""

    dtype: str
    scale_dtype: str


@dataclass(frozen=True)
class Request:
    """The integers of Request in runner.cpp, in its order."""

    operation: int
    activations: int = 0  # an index of ACTIVATIONS: those that are allowed
    M: int = 1
    N: int = 1
    K: int = 32
    batch_size: int = 1
    batch_count: int = 1
    batch_repeat: int = 1
    dtype: int = 0  # indices of DTYPES, or a number of FLOAT_MODES
    scale_dtype: int = 0
    bits: int = 4
    group_size: int = 32
    mode: int = 0
    transpose: bool = True
    packed: bool = False
    invariant: bool = False

    def head(self, sizes: list[int]) -> bytes:
        """Return the bytes before the arrays; `sizes` are those of all arrays."""
        values = [*astuple(self), *sizes]
        return struct.pack(f"{len(values)}i", *values)


def request(operation: str, dtype: str = "float32", **more: Any) -> Request:
    """Return a request; `more` are fields of Request."""
    return Request(OPERATIONS.index(operation), dtype=DTYPES.index(dtype), **more)


def batched(size: int, count: int, repeat: int) -> dict[str, int]:
    """Return the fields of a batch."""
    return {"batch_size": size, "batch_count": count, "batch_repeat": repeat}


def allowed(int8: bool, int16: bool = False) -> int:
    """Return the activations that a caller allows."""
    return ACTIVATIONS.index("int8" if int8 else "int16" if int16 else "exact")


def form_of(
    w: Weights | FloatWeights, types: Types, symmetric: bool = False
) -> dict[str, int]:
    """Return the fields that weights [..., N, K] decide."""
    N, K = w.scales.shape[-2], w.scales.shape[-1] * w.group_size
    fields = {"N": N, "K": K, "bits": w.bits, "group_size": w.group_size}
    if isinstance(w, FloatWeights):
        mode, scale_dtype = FLOAT_MODES[w.mode]
        return fields | {"mode": mode, "scale_dtype": scale_dtype}
    scale_dtype = DTYPES.index(types.scale_dtype)
    return fields | {"mode": int(symmetric), "scale_dtype": scale_dtype}


def mode_form(mode: str) -> dict[str, int]:
    """Return the fields of a mode of floats, without a shape."""
    row = MODES[mode]
    number, scale_dtype = FLOAT_MODES[mode]
    return {
        "bits": row.bits[0],
        "group_size": row.default_group_size,
        "mode": number,
        "scale_dtype": scale_dtype,
    }

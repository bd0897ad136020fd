"""MLX's own kernels, from the installed wheel, as witnesses.

They run on every Apple GPU there is. If the bench read Metal's rules otherwise than
Apple does, they would fail on it; and what they cost is the yardstick for ours.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import build, numbers
from .executor import Options, Outcome, load, run
from .plans import Launch, Problem
from .source import Unit, flatten, translate

_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat"}
_HEADERS = ("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "quantized.h")
# Written against the __metal_* functions of Apple's compiler; no product needs it.
_LEFT_OUT = frozenset({"bf16_math.h"})


def include_root() -> Path:
    """Where the wheel keeps `mlx/backend/metal/kernels`."""
    spec = importlib.util.find_spec("mlx")
    assert spec and spec.submodule_search_locations
    return Path(list(spec.submodule_search_locations)[0]).resolve() / "include"


@functools.cache
def _library_text() -> str:
    folder = include_root() / "mlx" / "backend" / "metal" / "kernels"
    paths = [folder / name for name in _HEADERS]
    return flatten(paths, include_root(), leave_out=_LEFT_OUT)


@dataclass(frozen=True)
class Kernel:
    """How MLX calls one of its kernels for a problem.

    Attributes:
        function: Template, with `{T}`, `{g}` and `{b}` for type, group and bits.
        grid: Threadgroups, of a problem.
        threads: Of one threadgroup.
        order: What is bound, in order; one-letter names are int parameters.
        applies: Whether MLX would choose it, or could.
        split: Parts that K is cut into; each gives an output of its own.
    """

    function: str
    grid: Callable[[Problem], tuple[int, int, int]]
    threads: tuple[int, int, int]
    order: tuple[str, ...]
    applies: Callable[[Problem], bool]
    split: int = 1
    output: str = ""
    options: Options = field(default_factory=Options)


def _tiles(length: int, tile: int) -> int:
    return -(-length // tile)

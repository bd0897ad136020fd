"""The planner of conversion: a format for each matrix of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble.conversion.options import Options
from mlx_nibble.conversion.sensitivity import sensitivity
from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.formats import GROUP_SIZES, SUPPORTED_BITS, Format
from mlx_nibble.io.checkpoint import dtype_name
from mlx_nibble.layerwise.matrices import Matrix, matrices, parameters
from mlx_nibble.progress import Progress, silent
from mlx_nibble.quantize.budget import solve
from mlx_nibble.quantize.recipes import RECIPES

# Divergences of blocks differ by orders of magnitude: few tokens order them.
_SENSITIVITY_TOKENS = 256
# Widths up to this one are measured one by one. With more bits a divergence grows with
# the square of the error, so it is extrapolated.
_MEASURED_BITS = 4


def make_plan(
    model: nn.Module,
    options: Options,
    tokens: Sequence[mx.array],
    open_workspace: Callable[[], Workspace],
    progress: Progress = silent,
) -> tuple[dict[str, Format], dict[str, float]]:
    """Choose the format of each matrix: by recipe, or by measured sensitivity.

    The workspace is opened after all checks: a mistake leaves no trace in it.

    Returns:
        The plan; and, if measured, the loss of each matrix in 4 bits.

    Raises:
        ValueError: If no matrix can be quantized, or the target cannot be reached.
    """
    found = matrices(model)
    if not found:
        raise ValueError(
            "[convert] the model must have a matrix that can be quantized but has none."
        )
    dtype = options.dtype or dtype_name(found[0].module["weight"].dtype)
    base = Format(options.bits, options.group_size, dtype, options.mode)
    if options.target_bpw is None:
        shapes = {m.path: m.shape for m in found}
        plan = RECIPES[options.recipe](shapes, base)
        if options.recipe == "uniform":  # as in mlx-lm, a recipe overrules the model
            plan |= _own_formats(found, base)
        return plan, {}
    # Widths two bits below the mean cost more than they save elsewhere. On SmolLM2 a
    # plan of 5 bits with widths of 2 and 3 lost more than 4 bits throughout.
    fewest = min(max(2, int(options.target_bpw) - 1), max(SUPPORTED_BITS))
    widths = [bits for bits in SUPPORTED_BITS if bits >= fewest]
    forms = [replace(base, bits=b, group_size=g) for b in widths for g in GROUP_SIZES]
    smallest = replace(base, bits=widths[0], group_size=GROUP_SIZES[-1])
    budget = _budget(model, found, options.target_bpw, smallest)
    measured = [replace(base, bits=b) for b in widths if b <= _MEASURED_BITS]
    measured = measured or [replace(base, bits=widths[0])]
    some = tokens[: max(1, _SENSITIVITY_TOKENS // tokens[0].size)]
    choices = sensitivity(model, some, measured, forms, open_workspace(), progress)
    losses = {
        m.path: choice.loss
        for m in found
        for choice in choices.get(m.path, [])
        if choice.form == measured[-1].fitted(m.inputs)
    }
    return solve(choices, budget), losses


def _own_formats(found: Sequence[Matrix], base: Format) -> dict[str, Format]:
    """Return the formats that the model itself asks for, such as a router's 8 bits."""
    own = {m.path: replace(base, **m.own).fitted(m.inputs) for m in found if m.own}
    return {path: form for path, form in own.items() if form is not None}


def _budget(
    model: nn.Module, found: Sequence[Matrix], target: float, smallest: Format
) -> int:
    """Return the bytes that the target leaves for the matrices.

    Raises:
        ValueError: If even the smallest format needs more.
    """
    least = 0
    quantized = set()
    for m in found:
        if form := smallest.fitted(m.inputs):
            least += form.nbytes(m.size // m.inputs, m.inputs)
            quantized.add(f"{m.path}.weight")
    everything = parameters(model)
    weights = sum(value.size for value in everything.values())
    plain = sum(v.nbytes for path, v in everything.items() if path not in quantized)
    budget = int(target * weights / 8) - plain
    if budget < least:
        bits = 8 * (least + plain) / weights
        raise ValueError(
            f"[convert] the target must be at least {bits:.3f} bits a weight, which "
            f"matrices of {smallest.bits} bits and all else take, but is {target}."
        )
    return budget

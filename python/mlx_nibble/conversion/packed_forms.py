"""The form of a packed matrix in MLX: exact, or the nearest one, or values.

- Affine codes keep their scales; see :mod:`mlx_nibble.io.packed`.
- Floats in one of MLX's modes keep codes and scales. MLX takes the factor of an nvfp4
  matrix for experts only. The factor of another matrix goes into its scales if they
  hold it exactly.
- All other matrices get a symmetric form, or stay values. A bias of its own would be
  rounded, and move all weights of a group alike: in bfloat16 that cost nf4 2 % of
  perplexity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlx_nibble.conversion.packed_experts import is_expert
from mlx_nibble.conversion.values import require_unclipped
from mlx_nibble.formats import Format, Quantized, round_to
from mlx_nibble.io.packed import Unpacked, in_mlx_groups
from mlx_nibble.io.packed_floats import Floats, Table, Values
from mlx_nibble.quantize.rules import symmetric

# Widths and group sizes that lose less than 0.5 % of perplexity:
# docs/results/packed.md.
_NEAREST = {
    "nvfp4": (8, 64),
    "fp8": (8, 64),
    "hqq": (8, 64),
    "nf4": (8, 64),
    "fp4": (8, 64),
}
# mlx-lm's classes divide this matrix among heads, and would round it again.
_KEPT = ".kv_b_proj"


@dataclass(frozen=True)
class Formed:
    """A packed matrix in MLX's form.

    Attributes:
        matrix: Codes in one of MLX's formats, or values in float32.
        order: Order of its inputs; None if they are in order.
        error: Relative error of the values, root mean square; 0 if none was rounded.
    """

    matrix: Quantized | Floats | np.ndarray
    order: np.ndarray | None = None
    error: float = 0.0


def formed(
    path: str, matrix: Unpacked | Floats | Table | Values, dtype: str, keep: str
) -> Formed:
    """Return the form of a matrix.

    Args:
        path: Its path.
        matrix: The matrix as another tool stores it.
        dtype: Type of scales and biases.
        keep: For a matrix that no form holds exactly: "values" keeps them in full
            precision, "quality" takes a width that loses little.

    Raises:
        ValueError: If a scale is not finite, or groups do not fit.
    """
    if isinstance(matrix, Unpacked):
        return Formed(*in_mlx_groups(matrix, dtype))
    if isinstance(matrix, Floats):
        exact = matrix if is_expert(path) else matrix.folded()
        if exact is not None and not path.endswith(_KEPT):
            return Formed(exact)
        matrix = Values(_kind(matrix), matrix.values())
    values = matrix.values
    bits, size = _NEAREST[matrix.kind]
    form = Format(bits, size, dtype, "symmetric").fitted(values.shape[1])
    if keep == "values" or form is None or path.endswith(_KEPT):
        return Formed(values)
    if isinstance(matrix, Table) and matrix.size % form.group_size == 0:
        nearest = _on_one_grid(matrix, form)
    else:
        nearest = symmetric(values, form)
    require_unclipped(path, nearest, dtype, float(abs(values).max()))
    total = float(np.square(values, dtype=np.float64).sum())
    lost = nearest.dequantize() - values
    error = float(np.square(lost, dtype=np.float64).sum())
    return Formed(nearest, None, math.sqrt(error / total) if total else 0.0)


def _kind(matrix: Floats) -> str:
    return "fp8" if matrix.bits == 8 else "nvfp4"


def _on_one_grid(matrix: Table, form: Format) -> Quantized:
    """Return a matrix whose levels lie on one grid around zero, that of least error.

    The largest level gets each code in turn. Blocks scale the grid.
    """
    levels = matrix.levels.astype(np.float64)
    top, half = float(abs(levels).max()) or 1.0, 1 << (form.bits - 1)
    steps = top / np.arange(1, half)
    lost = [np.square(levels - step * np.rint(levels / step)).sum() for step in steps]
    step = steps[np.argmin(lost)]
    codes = (np.rint(levels / step) + half).astype(np.uint8)
    rows, inputs = matrix.codes.shape
    first = np.arange(rows * inputs // form.group_size) * form.group_size
    scales = matrix.scales[first // matrix.size].reshape(rows, -1) * np.float32(step)
    scales = round_to(scales, form.scale_dtype)
    biases = np.float32(-half) * scales
    return Quantized(codes[matrix.codes], scales, biases, form.bits)

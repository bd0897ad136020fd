"""Bounds of rounding errors, as docs/reference/numerics.md derives them.

A sum of n products with unit roundoff u errs by at most ``lambda sqrt(n) u sum|x||w|``,
except with probability ``2 n exp(-lambda^2 / 2)``.
Source: Higham and Mary, "A new approach to probabilistic rounding error analysis",
2019. With lambda = 7 the probability is 2e-7 for n = 4096.

Arrays are NumPy's, of float64. Types are given by their names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LAMBDA = 7.0
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# The type to which a GPU rounds float32 operands of MLX's dense products, unless
# MLX_ENABLE_TF32=0: NVIDIA's since Ampere, Apple's since M5.
TF32_ROUNDOFF = 2.0**-11
# Half the smallest subnormal: the error of rounding to zero.
UNDERFLOW = {"float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}


def of_sum(
    magnitude: np.ndarray, terms: int, weight_dtype: str = "float32"
) -> np.ndarray:
    """Return the error bound of a sum in float32.

    Args:
        magnitude: sum |x| (|scale| code + |bias|).
        terms: Number of terms.
        weight_dtype: Type that w_hat is rounded to before the multiplication.
    """
    off = LAMBDA * math.sqrt(terms + 4) * UNIT_ROUNDOFF["float32"] * magnitude
    if weight_dtype != "float32":
        # Each term has an independent error of u|w_hat|. Their sum grows like a random
        # walk, and stays below u * magnitude.
        off = off + UNIT_ROUNDOFF[weight_dtype] * magnitude
    return off


def of_swiglu(
    gate: np.ndarray, up: np.ndarray, off_gate: np.ndarray, off_up: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return silu(gate) * up, and its error bound before rounding to its type."""
    import numpy as np

    # exp(-g) is infinite for a large negative g, and silu is zero, as it should be.
    with np.errstate(over="ignore"):
        silu = gate / (1 + np.exp(-gate))
    # |silu'| < 1.1. exp errs by two units; sum, quotient and product round as well.
    off = 1.1 * off_gate * (abs(up) + off_up) + abs(silu) * off_up
    off = off + 8 * UNIT_ROUNDOFF["float32"] * abs(silu * up)
    # Below -88.37 our exp(-g) is infinite, and silu is 0: it is below |g| / exp(-g).
    return silu * up, off + 2.0**-127 * abs(gate * up)


def of_result(exact: np.ndarray, off: np.ndarray, dtype: str) -> np.ndarray:
    """Return the error bound after rounding to ``dtype``, given ``off`` before it."""
    u = UNIT_ROUNDOFF[dtype]
    return off * (1 + u) + u * abs(exact) + UNDERFLOW[dtype]

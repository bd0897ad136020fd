"""How far a result may be off by rounding: the bounds of docs/reference/numerics.md.

A sum of n products in a precision of unit roundoff u errs by at most
lambda * sqrt(n) * u * sum |x||w| except with a probability of
2 n exp(-lambda^2 / 2) (Higham and Mary, "A new approach to probabilistic rounding
error analysis", 2019). lambda = 7 makes that 2e-7 for n = 4096.

Arrays are NumPy's, of float64, and types are called by their names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LAMBDA = 7.0
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Half the smallest subnormal: what rounding to zero costs.
UNDERFLOW = {"float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}


def of_sum(
    magnitude: np.ndarray, terms: int, weight_dtype: str = "float32"
) -> np.ndarray:
    """How far a sum in float32 may be off.

    Args:
        magnitude: sum |x| (|scale| code + |bias|).
        terms: Length of the sum.
        weight_dtype: Type that w_hat is rounded to before it is multiplied.
    """
    off = LAMBDA * math.sqrt(terms + 4) * UNIT_ROUNDOFF["float32"] * magnitude
    if weight_dtype != "float32":
        # Independent errors of u|w_hat| a term add up like a random walk; the
        # largest term is at most the whole, hence no more than u * magnitude.
        off = off + UNIT_ROUNDOFF[weight_dtype] * magnitude
    return off


def of_swiglu(
    gate: np.ndarray, up: np.ndarray, off_gate: np.ndarray, off_up: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """silu(gate) * up, and how far it may be off before it is rounded to its type."""
    import numpy as np

    # exp(-g) of a large negative g is infinite, and silu rightly zero.
    with np.errstate(over="ignore"):
        silu = gate / (1 + np.exp(-gate))
    # |silu'| < 1.1. exp within two units, sum, quotient, product.
    off = 1.1 * off_gate * (abs(up) + off_up) + abs(silu) * off_up
    return silu * up, off + 8 * UNIT_ROUNDOFF["float32"] * abs(silu * up)


def of_result(exact: np.ndarray, off: np.ndarray, dtype: str) -> np.ndarray:
    """How far what is off by so much may be once it is rounded to a type."""
    u = UNIT_ROUNDOFF[dtype]
    return off * (1 + u) + u * abs(exact) + UNDERFLOW[dtype]

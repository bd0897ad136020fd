"""A case's result against the value and the bound that it must meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.support.arrays import to_numpy

LARGEST = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}


@dataclass(frozen=True)
class Case:
    """A call, the exact result in float64, and the bound of each element's error."""

    call: Callable[[], mx.array]
    exact: np.ndarray
    allowed: np.ndarray
    dtype: str
    # Another value that is right where it is not finite.
    otherwise: np.ndarray | None = None
    # Whether NaN is right, too, where it is not finite.
    or_nan: bool = False


def fault(case: Case) -> str | None:
    """Return the difference of the call's result, or None.

    NaN must be NaN and infinity the same infinity. A finite value that the type cannot
    hold is infinite.
    """
    y = case.call()
    name = str(y.dtype).removeprefix("mlx.core.")
    if name != case.dtype or y.shape != case.exact.shape:
        return f"{name} {y.shape} instead of {case.dtype} {case.exact.shape}"
    result, exact = to_numpy(y).astype(np.float64), case.exact
    close = abs(result - exact) <= case.allowed
    # The end of the allowed values on the side of the result.
    end = (np.sign(result) * exact + case.allowed) * (1 + UNIT_ROUNDOFF[case.dtype])
    beyond = np.isinf(result) & (end >= LARGEST[case.dtype])
    finite = np.isfinite(exact)
    same = (result == exact) | (np.isnan(result) & np.isnan(exact))
    if case.otherwise is not None:
        same |= ~finite & (result == case.otherwise)
    if case.or_nan:
        same |= ~finite & np.isnan(result)
    bad = np.argwhere(~np.where(finite, close | beyond, same))
    if len(bad) == 0:
        return None
    at = tuple(int(i) for i in bad[0])
    return (
        f"{len(bad)} of {exact.size} elements are off, first {at}: got "
        f"{result[at]!r}, exact {exact[at]!r}, allowed {case.allowed[at]:.3e}"
    )

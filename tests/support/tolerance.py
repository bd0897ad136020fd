"""Tolerances of results against the oracle: computed, never tuned.

The bounds are the library's own: its self-check applies the same ones to kernels.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_nibble import numerics
from tests.support import oracle


def bound(
    exact: np.ndarray,
    magnitude: np.ndarray,
    terms: int,
    dtype: str,
    weight_dtype: str = "float32",
) -> np.ndarray:
    """Return the elementwise bound on |result - exact|.

    Args:
        exact: Result of the oracle.
        magnitude: Array of the same shape: sum |x| (|scale| code + |bias|).
        terms: Length of each sum.
        dtype: Type of the result, rounded to once, at the store.
        weight_dtype: Type that w_hat is rounded to before it is multiplied.
    """
    off = numerics.of_sum(magnitude, terms, weight_dtype)
    return numerics.of_result(exact, off, dtype)


def weight_dtype(dtype: str, transpose: bool) -> str:
    """Return the type that the weights of a product with few rows are rounded to."""
    return dtype if mx.cuda.is_available() and not transpose else "float32"


def int8_bound(x: np.ndarray, w_hat: np.ndarray, group_size: int) -> np.ndarray:
    """Return what rounding activations to 8 bits, group by group, adds to `bound`.

    step[m, g] = max(max |x[m, k]| / 127, 2^-126) over the k in g. An activation is
    off by half a step, and slightly more because the quotient is rounded:
    sum over g of (1/2 + 2^-15) step[m, g] sum over k in g of |w_hat[n, k]|.

    Args:
        x: [..., M, K].
        w_hat: [..., N, K].
        group_size: Activations that share a step.
    """
    groups = x.reshape(*x.shape[:-1], -1, group_size)
    step = np.maximum(abs(groups).max(-1).astype(np.float64) / 127, 2.0**-126)
    weights = abs(w_hat).reshape(*w_hat.shape[:-1], -1, group_size).sum(-1)
    return (0.5 + 2.0**-15) * (step @ weights.swapaxes(-1, -2))


def swiglu(
    x: np.ndarray,
    gate: oracle.Weights,
    up: oracle.Weights,
    which: np.ndarray,
    dtype: str,
    int8: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return silu(g) * u in float64, and the bound of a result that rounds it once.

    Args:
        x: [B, M, K].
        gate: [E, N, K]; g = x @ gate_hat[which].T.
        up: [E, N, K]; u = x @ up_hat[which].T.
        which: Index of the matrix for each of the B.
        dtype: Type of the result.
        int8: True if x is rounded to 8 bits first.
    """
    products, offs = [], []
    for w in (gate, up):
        w_hat = w.dequantize()[which]
        exact = oracle.matmul(x, w_hat)
        magnitude = oracle.matmul(abs(x), w.magnitude()[which])
        off = bound(exact, magnitude, x.shape[-1], "float32")
        if int8:
            off = off + int8_bound(x, w_hat, w.group_size) * (1 + 2.0**-24)
        products.append(exact)
        offs.append(off)
    (g, u), (off_g, off_u) = products, offs
    exact, off = numerics.of_swiglu(g, u, off_g, off_u)
    return exact, numerics.of_result(exact, off, dtype)


def assert_close(
    result: np.ndarray, exact: np.ndarray, allowed: np.ndarray, label: str = ""
) -> None:
    """Fail with the worst element, its neighbours and its bound.

    Where the oracle has an infinity, the result must have the same one.
    """
    assert result.shape == exact.shape, f"{label}: {result.shape} != {exact.shape}"
    endless = np.isinf(exact)
    error = abs(result.astype(np.float64) - np.where(endless, 0, exact))
    error = np.where(endless, np.where(result == exact, 0, np.inf), error)
    allowed = np.where(endless, 0, allowed)
    bad = ~(error <= allowed)  # a NaN is bad too
    if not bad.any():
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(bad, np.nan_to_num(error / allowed, nan=np.inf), 0)
    worst = np.unravel_index(np.argmax(ratio), ratio.shape)
    raise AssertionError(
        f"{label}: {bad.sum()} of {bad.size} elements are off; worst at "
        f"{tuple(int(i) for i in worst)}: got {result[worst]!r}, exact "
        f"{exact[worst]!r}, error {error[worst]:.3e} > {allowed[worst]:.3e}"
    )


def relative_rms(result: np.ndarray, exact: np.ndarray) -> float:
    """Return sqrt(mean (result - exact)^2 / mean exact^2)."""
    error = result.astype(np.float64) - exact
    return float(np.sqrt((error**2).mean() / (exact**2).mean()))

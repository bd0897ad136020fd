r"""The Hessian of a layer: the statistics of its inputs that quantizers use.

For a linear layer :math:`y = W x`, the squared error of the output over the
calibration inputs X `[T, K]` is

.. math:: \|X (W - \hat W)^\top\|^2 = \mathrm{tr}\,(W - \hat W) H (W - \hat W)^\top,
    \qquad H = X^\top X,

so a quantizer needs only H `[K, K]` of the inputs (Frantar et al. 2022).
"""

from __future__ import annotations

import numpy as np


def output_error(weight: np.ndarray, approx: np.ndarray, hessian: np.ndarray) -> float:
    """Return the squared error of the layer's output, `tr (W - A) H (W - A)^T`.

    Args:
        weight: Weight W, `[N, K]`.
        approx: Dequantized weight A, `[N, K]`.
        hessian: Hessian H, `[K, K]`.
    """
    delta = (weight - approx).astype(np.float32)
    return float(np.einsum("nk,nk->", delta @ hessian, delta, dtype=np.float64))


def damped(hessian: np.ndarray, damping: float) -> np.ndarray:
    """Add `damping` times the mean of the diagonal to the diagonal.

    Inputs that were always zero get a diagonal too, so the result is always positive
    definite.

    Args:
        hessian: Symmetric positive semidefinite matrix `[K, K]`.
        damping: Factor above 0. GPTQ uses 0.01.

    Returns:
        float64 `[K, K]`.

    Raises:
        ValueError: If the Hessian is not finite, or `damping` not above 0.
    """
    if not damping > 0:
        raise ValueError(f"[gptq] damping must be above 0 but got {damping}.")
    if not np.isfinite(hessian).all():
        raise ValueError(
            "[gptq] the Hessian must be finite but is not: the model's activations "
            "overflow on this calibration text."
        )
    h = hessian.astype(np.float64)
    mean = np.diagonal(h).mean()
    h[np.diag_indices_from(h)] += damping * mean if mean > 0 else 1.0
    return h


def inverse_factor(hessian: np.ndarray) -> np.ndarray:
    r"""Return the upper triangular U with :math:`H^{-1} = U^\top U`.

    U is GPTQ's Cholesky factor of the inverse. The inverse is not computed: reversed
    rows and columns turn the lower factor of H into an upper one, whose inverse is U.

    Args:
        hessian: Positive definite matrix `[K, K]`.
    """
    reverse = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    return _inverse_upper(reverse)


# Up to this size LAPACK's general inverse is faster than more recursion.
_LEAF = 128


def _inverse_upper(r: np.ndarray) -> np.ndarray:
    """Invert an upper triangular matrix by recursion on halves."""
    size = len(r)
    if size <= _LEAF:
        return np.triu(np.linalg.inv(r))
    half = size // 2
    inverse = np.zeros_like(r)
    first = inverse[:half, :half] = _inverse_upper(r[:half, :half])
    second = inverse[half:, half:] = _inverse_upper(r[half:, half:])
    inverse[:half, half:] = -first @ (r[:half, half:] @ second)
    return inverse


def diagonal_blocks(hessian: np.ndarray, group_size: int) -> np.ndarray:
    """Return the blocks of the groups, `[K / g, g, g]`: weights for `search`."""
    groups = len(hessian) // group_size
    split = hessian.reshape(groups, group_size, groups, group_size)
    return np.ascontiguousarray(np.einsum("igih->igh", split))

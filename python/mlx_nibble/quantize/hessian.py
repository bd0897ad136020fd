r"""What a layer's inputs say about its weights.

For a linear layer :math:`y = W x`, the squared error of the output over the
calibration inputs X `[T, K]` is

.. math:: \|X (W - \hat W)^\top\|^2 = \mathrm{tr}\,(W - \hat W) H (W - \hat W)^\top,
    \qquad H = X^\top X,

so that H `[K, K]` is all a quantizer needs to know of them (Frantar et al. 2022).
"""

from __future__ import annotations

import numpy as np


def output_error(weight: np.ndarray, approx: np.ndarray, hessian: np.ndarray) -> float:
    """The squared error of the layer's output, `tr (W - A) H (W - A)^T`.

    Args:
        weight: `[N, K]`.
        approx: `[N, K]`.
        hessian: `[K, K]`.
    """
    delta = (weight - approx).astype(np.float32)
    return float(np.einsum("nk,nk->", delta @ hessian, delta, dtype=np.float64))


def damped(hessian: np.ndarray, damping: float) -> np.ndarray:
    """Add `damping` times the mean of the diagonal to the diagonal.

    Inputs that were zero throughout get a diagonal too, so that the result is
    positive definite whatever the inputs were.

    Args:
        hessian: `[K, K]`, symmetric positive semidefinite.
        damping: Above 0. GPTQ uses 0.01.

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
    r"""The upper triangular U with :math:`H^{-1} = U^\top U`.

    GPTQ's Cholesky factor of the inverse, without forming the inverse: reversing
    rows and columns makes the lower factor of H an upper one, whose inverse is U.

    Args:
        hessian: `[K, K]`, positive definite.
    """
    reverse = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    return _inverse_upper(reverse)


# LAPACK's general inverse is quicker than recursing to smaller blocks.
_LEAF = 128


def _inverse_upper(r: np.ndarray) -> np.ndarray:
    """Invert an upper triangular matrix, by halves."""
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
    """The blocks of the groups, `[K / g, g, g]`: what `search` can weigh by."""
    groups = len(hessian) // group_size
    split = hessian.reshape(groups, group_size, groups, group_size)
    return np.ascontiguousarray(np.einsum("igih->igh", split))

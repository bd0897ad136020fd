"""The oracle of the layers between the products: float64, by the definition.

Each function returns the exact result and the magnitude of its rounding errors, for
:func:`tests.support.tolerance.bound`.
"""

from __future__ import annotations

import numpy as np

from mlx_nibble.numerics import LAMBDA, UNIT_ROUNDOFF


def rms_norm(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    x = x.astype(np.float64)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return y if weight is None else y * weight.astype(np.float64)


def log_sum_exp(x: np.ndarray) -> np.ndarray:
    """log(sum of e^x) over the last axis."""
    x = x.astype(np.float64)
    top = x.max(-1, keepdims=True)
    finite = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return finite[..., 0] + np.log(np.exp(x - finite).sum(-1))


def rope(
    x: np.ndarray,
    dims: int,
    traditional: bool,
    base: float | None,
    scale: float,
    offsets: np.ndarray,
    freqs: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return x [B, ..., L, D] rotated, and the sums of the products' magnitudes.

    Args:
        x: Rows.
        dims: How many leading elements of a row are rotated.
        traditional: Whether pairs are neighbours.
        base: Base of the frequencies, unless ``freqs`` are given.
        scale: Factor of the positions.
        offsets: int [B].
        freqs: [dims / 2] reciprocals of the frequencies.
    """
    x = x.astype(np.float64)
    half = dims // 2
    if freqs is None:
        frequencies = np.float64(base) ** (-np.arange(half) / half)
    else:
        frequencies = 1 / freqs.astype(np.float64)
    positions = offsets[:, None] + np.arange(x.shape[-2])  # [B, L]
    angles = positions[..., None] * scale * frequencies  # [B, L, half]
    middle = (1,) * (x.ndim - 3)
    angles = angles.reshape(len(offsets), *middle, *angles.shape[1:])
    pairs = (
        (slice(0, dims, 2), slice(1, dims, 2))
        if traditional
        else (slice(0, half), slice(half, dims))
    )
    a, b = (x[..., pair] for pair in pairs)
    cos, sin = np.cos(angles), np.sin(angles)
    exact, magnitude = x.copy(), abs(x)
    exact[..., pairs[0]] = a * cos - b * sin
    exact[..., pairs[1]] = a * sin + b * cos
    magnitude[..., pairs[0]] = abs(a * cos) + abs(b * sin)
    magnitude[..., pairs[1]] = abs(a * sin) + abs(b * cos)
    return exact, magnitude


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gate / (1 + exp(-gate)) * up."""
    gate = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up.astype(np.float64)


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    mask: None | str | np.ndarray = None,
    sinks: np.ndarray | None = None,
    k_magnitude: np.ndarray | None = None,
    v_magnitude: np.ndarray | None = None,
    cap: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return softmax(scale q k^T + mask) v, and a bound on float32's error.

    With a cap, scores are cap * tanh(score / cap), whose error is at most that of the
    score and some roundings of its own.

    The magnitudes are those of k and v in the bound: |scale| code + |bias| for codes,
    whose decoding is one more rounding of each term. By default |k| and |v|.

    A query that sees nothing gives zeros. The bound is a first-order one: the error
    of a score becomes the relative error of its weight, and

        |dy| <= sum_j w_j e_j (|v_j| + |y|) + rounding of two sums.
    """
    k_magnitude = abs(k) if k_magnitude is None else k_magnitude
    v_magnitude = abs(v) if v_magnitude is None else v_magnitude
    arrays = [a.astype(np.float64) for a in (k, v, k_magnitude, v_magnitude)]
    q = q.astype(np.float64)
    group = q.shape[1] // k.shape[1]
    k, v, k_magnitude, v_magnitude = (np.repeat(a, group, axis=1) for a in arrays)
    u = UNIT_ROUNDOFF["float32"]
    scores = scale * (q @ k.swapaxes(-1, -2))
    magnitude = abs(scale) * (abs(q) @ k_magnitude.swapaxes(-1, -2))
    error = LAMBDA * np.sqrt(q.shape[-1] + 4) * u * magnitude
    if cap:
        scores = cap * np.tanh(scores / cap)
        error = error + 16 * u * abs(scores)
    seen = np.ones(scores.shape, bool)
    if isinstance(mask, str):
        seen = np.tril(seen, scores.shape[-1] - scores.shape[-2])
    elif mask is not None and mask.dtype == np.bool_:
        seen = np.broadcast_to(mask, scores.shape)
    elif mask is not None:
        scores = scores + mask
        seen = scores > -np.inf
        error = error + np.where(seen, u * abs(scores), 0)
    scores = np.where(seen, scores, -np.inf)
    largest = scores.max(-1, keepdims=True)
    if sinks is not None:
        sink = sinks.astype(np.float64)[:, None, None]
        largest = np.maximum(largest, sink)
    largest = np.where(np.isinf(largest), 0, largest)
    weights = np.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sink - largest)
    weights = weights / np.where(total == 0, 1, total)
    y = weights @ v
    # Errors of a weight: its score, the subtraction (twice where the largest score
    # was found late), and 2 units of the exponential.
    with np.errstate(invalid="ignore"):
        distance = np.where(weights > 0, abs(scores - largest), 0)
        # An exponential below 2^-126 is 0.
        error = weights * (error + 2 * u * distance + 8 * u) + 2.0**-126
    # A key that is not seen may be anything.
    error = np.where(weights > 0, error, 0)
    allowed = error @ v_magnitude + error.sum(-1, keepdims=True) * abs(y)
    sums = 2 * LAMBDA * np.sqrt(k.shape[-2] + 4) * u * (weights @ v_magnitude)
    sums = sums + k.shape[-2] * 2.0**-149  # subnormal sums
    return y, allowed + sums

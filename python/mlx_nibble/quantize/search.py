r"""Search for the grid of least loss in each group.

The loss of a group is :math:`(w - \hat w) H_g (w - \hat w)^\top`. `H_g` is the
identity, a diagonal (the importance of each input), or the block of the layer's
Hessian. With a block the loss is the squared error of the layer's output. (Lin et al.
2023, "AWQ", clip by the same measure.)

The candidates are:

- the range of the group divided into 2**bits - 1 steps;
- the range divided into fewer steps, for a lossless grid need not use all codes;
- grids around zero, as in Q4_0 and Q8_0;
- MLX's own grid;
- narrower ranges, which clip.

Given the codes, the best scale and bias solve a 2 x 2 least-squares problem. The winner
is refined by alternating codes and grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlx_nibble.formats import Format, Quantized, grouped, round_to
from mlx_nibble.quantize.rules import affine
from mlx_nibble.quantize.threads import threads_for

# Ranges narrower than 0.6 of the full one never won for Gaussian or Laplacian
# weights at 2 to 8 bits; steps of 0.05 leave less than 1 % of the loss.
_SHRINK = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
# After these rounds the loss of the winner changes by less than 0.1 %.
_ROUNDS = 4
_TINY = np.float32(1e-10)
# Groups of a chunk: their float32 copies stay in a 2 MB cache.
_CHUNK = 4096


def search(
    weight: np.ndarray, form: Format, importance: np.ndarray | None = None
) -> Quantized:
    """Quantize with the grids of least loss.

    A lossless grid is found in two cases. Either the weights use its first code and all
    but a few of its last codes (Q4_1). Or it is symmetric and they use its largest code
    (Q4_0, Q8_0). The loss is never above that of `rules.affine` and `rules.minmax`, or
    of `rules.symmetric` for a symmetric format.

    Args:
        weight: Weight `[..., N, K]`.
        form: Format to store it in; K is a multiple of its group size.
        importance: None, or the weight of each input's squared error `[K]`, or the
            diagonal blocks of the Hessian `[G, g, g]`.

    Raises:
        ValueError: If shapes do not fit together.
    """
    inputs, size = weight.shape[-1], form.group_size
    if not form.fits(inputs):
        raise ValueError(
            f"[search] the inputs of a weight must be a multiple of the group size "
            f"{size} but got shape {weight.shape}."
        )
    shapes = {(inputs,), (inputs // size, size, size)}
    if importance is not None and importance.shape not in shapes:
        raise ValueError(
            f"[search] importance must have a shape of {sorted(shapes)} but got "
            f"{importance.shape}."
        )
    rows = np.ascontiguousarray(weight, np.float32).reshape(-1, inputs)
    codes = np.empty(rows.shape, np.uint8)
    scales = np.empty((len(rows), inputs // size), np.float32)
    biases = np.empty_like(scales)
    for row, column, h in _chunks(rows, size, importance):
        width = (column.stop - column.start) * size
        part = slice(column.start * size, column.start * size + width)
        w = rows[row, part].reshape(-1, size)
        with threads_for(2 * size * w.size):
            best = _best(w, h, form)
        codes[row, part] = best.codes.reshape(-1, width)
        scales[row, column] = best.scale.reshape(-1, width // size)
        biases[row, column] = best.bias.reshape(-1, width // size)
    groups = (*weight.shape[:-1], inputs // size)
    return Quantized(
        codes.reshape(weight.shape),
        scales.reshape(groups),
        biases.reshape(groups),
        form.bits,
    )


def _chunks(
    rows: np.ndarray, size: int, importance: np.ndarray | None
) -> Iterator[tuple[slice, slice, np.ndarray | None]]:
    """Yield rows and group columns that share one measure, and the measure."""
    groups = rows.shape[-1] // size
    if importance is None:
        step = max(1, _CHUNK // groups)
        for start in range(0, len(rows), step):
            yield slice(start, start + step), slice(0, groups), None
        return
    measure = importance if importance.ndim == 3 else grouped(importance, size)
    for group, h in enumerate(measure.astype(np.float32)):
        for start in range(0, len(rows), _CHUNK):
            yield slice(start, start + _CHUNK), slice(group, group + 1), h


class _Measure:
    """Inner products `x H y` of each row, with H as in `search`."""

    def __init__(self, h: np.ndarray | None, size: int):
        if h is not None:
            # Any grid suits a group of dead inputs: take the plain measure.
            total = np.trace(h) if h.ndim == 2 else h.sum()
            h = None if total <= 0 else h * np.float32(size / total)
        self.h = h

    def apply(self, x: np.ndarray) -> np.ndarray:
        if self.h is None:
            return x
        return x * self.h if self.h.ndim == 1 else x @ self.h


class _Best:
    """The grids of least loss so far, one for each group."""

    def __init__(self, count: int, size: int):
        self.loss = np.full((count, 1), np.inf, np.float32)
        self.codes = np.zeros((count, size), np.float32)
        self.scale = np.ones((count, 1), np.float32)
        self.bias = np.zeros((count, 1), np.float32)

    def offer(
        self, loss: np.ndarray, codes: np.ndarray, scale: np.ndarray, bias: np.ndarray
    ) -> None:
        won = loss < self.loss
        np.copyto(self.loss, loss, where=won)
        np.copyto(self.codes, codes, where=won)
        np.copyto(self.scale, scale, where=won)
        np.copyto(self.bias, bias, where=won)


def _best(w: np.ndarray, h: np.ndarray | None, form: Format) -> _Best:
    measure = _Measure(h, form.group_size)
    best = _Best(*w.shape)
    hw = measure.apply(w)
    ones = measure.apply(np.ones((1, w.shape[-1]), np.float32))
    for scale, bias in _candidates(w, form):
        codes = _try(best, w, scale, bias, measure, form)
        _try_fitted(best, w, hw, ones, codes, measure, form)
    for _ in range(_ROUNDS):
        codes = _codes(w, best.scale, best.bias, form)
        _try_fitted(best, w, hw, ones, codes, measure, form)
    return best


def _candidates(w: np.ndarray, form: Format) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    lo, hi = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    largest = np.maximum(np.maximum(-lo, hi), _TINY)
    half = 2 ** (form.bits - 1)
    if form.symmetric:
        for steps in (half - 1, half - 0.5, half):
            if steps > 0:
                yield largest / steps, -half * largest / steps
        for part in _SHRINK:
            scale = part * largest / max(half - 0.5, 0.5)
            yield scale, -half * scale
        return
    span = np.maximum(hi - lo, _TINY)
    yield span / form.levels, lo
    mlx = affine(w, form)
    yield mlx.scales, mlx.biases
    # Q4_0's grid: the edge of larger magnitude is code 0, zero is 2**(bits - 1).
    edge = np.where(-lo > hi, lo, hi)
    yield -edge / half, edge
    if form.bits > 1:
        yield largest / (half - 1), -half * largest / (half - 1)
    # A lossless grid whose last codes are unused. Only wide formats have more than 8
    # of these, and more trials are not worth their time.
    fewest = max(form.levels // 2, form.levels - 8)
    for steps in range(form.levels - 1, fewest, -1):
        yield span / steps, lo
    middle = (lo + hi) / 2
    for part in _SHRINK:
        yield part * span / form.levels, middle - part * span / 2


def _try(
    best: _Best,
    w: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    measure: _Measure,
    form: Format,
) -> np.ndarray:
    scale, bias = _stored(scale, bias, form)
    codes = _codes(w, scale, bias, form)
    best.offer(_loss(w, codes, scale, bias, measure), codes, scale, bias)
    return codes


def _try_fitted(
    best: _Best,
    w: np.ndarray,
    hw: np.ndarray,
    ones: np.ndarray,
    codes: np.ndarray,
    measure: _Measure,
    form: Format,
) -> None:
    """Offer the best scale and bias for given codes, by least squares."""
    half = np.float32(2 ** (form.bits - 1))
    if form.symmetric:
        signed = codes - half
        power = _dot(signed, measure.apply(signed))
        scale = _dot(signed, hw) / np.maximum(power, _TINY)
        scale = np.where(power > 0, scale, best.scale)
        bias = -half * scale
    else:
        # Centred on the mean, so that float32 sums do not cancel.
        total = ones.sum()
        mean_q = (codes @ ones.T) / total
        mean_w = (w @ ones.T) / total
        centred = codes - mean_q
        weighed = measure.apply(centred)
        power = _dot(centred, weighed)
        scale = _dot(weighed, w - mean_w) / np.maximum(power, _TINY)
        scale = np.where(power > _TINY, scale, best.scale)
        bias = mean_w - scale * mean_q
    scale, bias = _stored(scale, bias, form)
    best.offer(_loss(w, codes, scale, bias, measure), codes, scale, bias)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)[:, None]


def _stored(
    scale: np.ndarray, bias: np.ndarray, form: Format
) -> tuple[np.ndarray, np.ndarray]:
    scale = round_to(scale, form.scale_dtype)
    # Avoid a division by zero: all codes of a scale that rounds to zero are equal.
    scale = np.where(scale == 0, np.float32(6e-8), scale)
    if form.symmetric:
        return scale, -np.float32(2 ** (form.bits - 1)) * scale
    return scale, round_to(bias, form.scale_dtype)


def _codes(
    w: np.ndarray, scale: np.ndarray, bias: np.ndarray, form: Format
) -> np.ndarray:
    codes = w - bias
    codes /= scale
    np.rint(codes, out=codes)
    return np.clip(codes, 0, form.levels, out=codes)


def _loss(
    w: np.ndarray,
    codes: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    measure: _Measure,
) -> np.ndarray:
    residual = w - bias
    residual -= codes * scale
    return _dot(residual, measure.apply(residual))

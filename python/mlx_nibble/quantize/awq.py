r"""AWQ: scale inputs that matter up before rounding, and outputs back down.

For any positive s, :math:`W x = (W \mathrm{diag}(s)) (x / s)`, and the division can
be folded into the operation that made x: a norm's weight, or the rows of the linear
layer before. What is rounded is :math:`W \mathrm{diag}(s)`. Lin et al., "AWQ:
Activation-aware Weight Quantization", 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mlx_nibble.formats import Format, Quantized
from mlx_nibble.quantize.hessian import output_error
from mlx_nibble.quantize.rules import affine

Quantizer = Callable[[np.ndarray], Quantized]

# The paper's grid.
_RATIOS = tuple(i / 20 for i in range(20))
_LEAST = 1e-4


def scales(
    weights: Sequence[np.ndarray],
    hessian: np.ndarray,
    form: Format,
    *,
    quantizer: Quantizer | None = None,
    magnitude: np.ndarray | None = None,
) -> np.ndarray:
    r"""Search the scales :math:`s = a^\alpha`, :math:`\alpha \in [0, 1)`.

    `a` is the magnitude of each input; s is normalized to
    :math:`\sqrt{\max s \min s} = 1`. The best :math:`\alpha` has the least error of
    all outputs together; :math:`\alpha = 0` is among them, so that the result is
    never worse than no scales.

    Args:
        weights: The layers that share the input, each `[N_i, K]`.
        hessian: `X^T X` of that input, `[K, K]`.
        form: How they will be stored.
        quantizer: What rounds a scaled weight. Default: MLX's rule.
        magnitude: `[K]`. Default: the root mean square, from the diagonal.

    Returns:
        float32 `[K]`.
    """
    rounded = quantizer or (lambda w: affine(w, form))
    if magnitude is None:
        magnitude = np.sqrt(np.maximum(np.diagonal(hessian), 0))
    magnitude = magnitude / max(float(magnitude.max()), _LEAST)
    best, least = np.ones(len(magnitude), np.float32), np.inf
    for ratio in _RATIOS:
        s = _normalized(np.maximum(magnitude, _LEAST) ** ratio)
        error = sum(
            output_error(w, rounded(w * s).dequantize() / s, hessian) for w in weights
        )
        if error < least:
            best, least = s, error
    return best


def _normalized(s: np.ndarray) -> np.ndarray:
    return (s / np.sqrt(s.max() * s.min())).astype(np.float32)


def scaled_hessian(hessian: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The Hessian of the inputs `x / s`."""
    return hessian / s[:, None] / s[None, :]

r"""AWQ: scale important inputs up before rounding, and the result back down.

For any positive s, :math:`W x = (W \mathrm{diag}(s)) (x / s)`. The matrix
:math:`W \mathrm{diag}(s)` is rounded. The division folds into the operation that
computed x: a norm's weight, or the rows of the linear layer before. Lin et al., "AWQ:
Activation-aware Weight Quantization", 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mlx_nibble.formats import Format, Quantized
from mlx_nibble.quantize.hessian import output_error
from mlx_nibble.quantize.rules import affine

# The paper's grid.
_RATIOS = tuple(i / 20 for i in range(20))
_LEAST = 1e-4


def candidates(magnitude: np.ndarray) -> Iterator[np.ndarray]:
    r"""Yield the candidates :math:`s = a^\alpha`, :math:`\alpha \in [0, 1)`.

    Each is normalized to :math:`\sqrt{\max s \min s} = 1`. The first is all ones.

    Args:
        magnitude: Magnitude of each input, `[K]`.

    Yields:
        float32 `[K]`.
    """
    magnitude = magnitude / max(float(magnitude.max()), _LEAST)
    for ratio in _RATIOS:
        s = np.maximum(magnitude, _LEAST) ** ratio
        yield (s / np.sqrt(s.max() * s.min())).astype(np.float32)


def scales(
    weights: Sequence[np.ndarray],
    hessian: np.ndarray,
    form: Format,
    *,
    quantizer: Callable[[np.ndarray, Format], Quantized] = affine,
    magnitude: np.ndarray | None = None,
) -> np.ndarray:
    """Choose scales by the error of the layers' own outputs.

    The best of `candidates` has the least error summed over all outputs. The first
    candidate does not scale, so the result is never worse than no scales.

    Args:
        weights: Weights of the layers that share the input, each `[N_i, K]`.
        hessian: `X^T X` of that input, `[K, K]`.
        form: Format of the stored weights.
        quantizer: Function that rounds a scaled weight. Default: MLX's rule.
        magnitude: Magnitude of each input, `[K]`. Default: the root mean square, from
            the diagonal.

    Returns:
        float32 `[K]`.
    """
    if magnitude is None:
        magnitude = np.sqrt(np.maximum(np.diagonal(hessian), 0))

    def error(s: np.ndarray) -> float:
        return sum(
            output_error(w, quantizer(w * s, form).dequantize() / s, hessian)
            for w in weights
        )

    return min(candidates(magnitude), key=error)

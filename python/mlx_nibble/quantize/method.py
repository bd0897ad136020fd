"""One matrix from start to finish: which steps are taken, in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlx_nibble.formats import Format, Quantized
from mlx_nibble.numerics import UNIT_ROUNDOFF
from mlx_nibble.quantize.gptq import gptq
from mlx_nibble.quantize.hessian import damped, diagonal_blocks
from mlx_nibble.quantize.refine import refine
from mlx_nibble.quantize.rules import affine, minmax, symmetric
from mlx_nibble.quantize.search import search

RULES: dict[str, Callable[[np.ndarray, Format], Quantized]] = {
    "affine": affine,
    "minmax": minmax,
    "symmetric": symmetric,
    "search": search,
}


@dataclass(frozen=True)
class Method:
    """The steps of quantizing a layer.

    Attributes:
        rule: Which grids, one of `RULES`.
        awq: Scale inputs before, see :mod:`mlx_nibble.conversion.awq`.
        gptq: Round by GPTQ, to the grids of `rule`.
        sweeps: Sweeps of coordinate descent afterwards.
        damping: See :func:`mlx_nibble.quantize.hessian.damped`; `K / T` is added for
            T tokens of calibration, see `quantize`.
    """

    rule: str = "search"
    awq: bool = False
    gptq: bool = True
    sweeps: int = 4
    damping: float = 0.05

    def __post_init__(self) -> None:
        """Check the values."""
        if self.rule not in RULES:
            raise ValueError(
                f"[quantize] rule must be one of {tuple(RULES)} but got {self.rule!r}."
            )

    @property
    def calibrated(self) -> bool:
        """Whether it needs to see the layers' inputs."""
        return self.awq or self.gptq or self.sweeps > 0


def quantize(
    weight: np.ndarray,
    form: Format,
    method: Method,
    hessian: np.ndarray | None = None,
    tokens: int | None = None,
) -> Quantized:
    """Quantize one matrix.

    A Hessian of K inputs estimated from T tokens has eigenvalues that are off by
    about `sqrt(K / T)` of their size (Marchenko and Pastur 1967), and text differs
    from text. GPTQ trusts it where it should not: on SmolLM2, calibrated on 2048
    tokens of one text with GPTQ's own damping of 0.01, the error of the down
    projections' outputs on another text is above that of rounding to nearest, and
    well below it with a damping near `K / T`.

    Args:
        weight: `[..., N, K]`.
        form: How to store it.
        method: The steps to take; without a Hessian only its rule.
        hessian: `[..., K, K]` with the leading dimensions of the weight.
        tokens: How many it was estimated from.
    """
    rule = RULES[method.rule]
    if hessian is None:
        return rule(weight, form)
    if weight.ndim > 2:
        parts = [
            quantize(w, form, method, h, tokens)
            for w, h in zip(weight, hessian, strict=True)
        ]
        return Quantized(
            np.stack([q.codes for q in parts]),
            np.stack([q.scales for q in parts]),
            np.stack([q.biases for q in parts]),
            form.bits,
        )
    damping = method.damping + (weight.shape[-1] / tokens if tokens else 0)
    q = _on_grids(weight, form, method, damped(hessian, damping))
    if _is_lossless(weight, q, form):
        return q
    if method.gptq:
        q = gptq(weight, hessian, form, damping=damping, grid=q)
    if method.sweeps:
        q = refine(weight, q, hessian, form, sweeps=method.sweeps, damping=damping)
    return q


def _on_grids(
    weight: np.ndarray, form: Format, method: Method, hessian: np.ndarray
) -> Quantized:
    """Round to the nearest level of the rule's grids."""
    if method.rule != "search":
        return RULES[method.rule](weight, form)
    if method.gptq or method.sweeps:
        # Codes will move together; what they do to each other is not yet known.
        return search(weight, form, np.diagonal(hessian))
    return search(weight, form, diagonal_blocks(hessian, form.group_size))


def _is_lossless(weight: np.ndarray, q: Quantized, form: Format) -> bool:
    """Tell whether less is lost than by rounding the weight to the stored type.

    A weight that was on a grid and then rounded to float16 is never quite on it.
    """
    lost = np.square(weight - q.dequantize()).sum(dtype=np.float64)
    whole = np.square(weight).sum(dtype=np.float64)
    return lost <= UNIT_ROUNDOFF[form.scale_dtype] ** 2 * whole

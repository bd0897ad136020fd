"""Quantization of one matrix: the steps and their order."""

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
        rule: Rule that chooses the grids, one of `RULES`.
        awq: Scale inputs first, see :mod:`mlx_nibble.conversion.awq_layer`.
        gptq: Round by GPTQ, to the grids of `rule`.
        sweeps: Number of sweeps of coordinate descent at the end.
        damping: Argument of :func:`mlx_nibble.quantize.hessian.damped`; `quantize` adds
            `K / T` for T tokens of calibration.
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
        """True if the method needs the layers' inputs."""
        return self.awq or self.gptq or self.sweeps > 0


def quantize(
    weight: np.ndarray,
    form: Format,
    method: Method,
    hessian: np.ndarray | None = None,
    tokens: int | None = None,
) -> Quantized:
    """Quantize one matrix.

    A Hessian of K inputs that is estimated from T tokens has eigenvalues with a
    relative error of about `sqrt(K / T)` (Marchenko and Pastur 1967). Besides, texts
    differ. With too little damping GPTQ fits these errors. Measured on SmolLM2,
    calibrated on 2048 tokens of one text: with GPTQ's own damping of 0.01 the outputs
    of down projections on another text are worse than rounding to nearest. With a
    damping near `K / T` they are much better.

    Args:
        weight: Weight `[..., N, K]`.
        form: Format to store it in.
        method: The steps; without a Hessian only its rule.
        hessian: Hessian `[..., K, K]`, with the leading dimensions of the weight.
        tokens: Number of tokens that the Hessian was estimated from.
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
        # Later steps move codes together, so interactions are not weighted yet.
        return search(weight, form, np.diagonal(hessian))
    return search(weight, form, diagonal_blocks(hessian, form.group_size))


def _is_lossless(weight: np.ndarray, q: Quantized, form: Format) -> bool:
    """Tell whether the loss is below that of rounding the weight to the stored type.

    A weight that was on a grid and then rounded to float16 is no longer exactly on it.
    """
    lost = np.square(weight - q.dequantize()).sum(dtype=np.float64)
    whole = np.square(weight).sum(dtype=np.float64)
    return lost <= UNIT_ROUNDOFF[form.scale_dtype] ** 2 * whole

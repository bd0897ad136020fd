"""The exact weights of packed matrices, for bench.cuda_run."""

from __future__ import annotations

import numpy as np
import torch

Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def e4m3() -> np.ndarray:
    """Return the values of the floats of 8 bits; the largest is NaN."""
    codes = np.arange(128)
    exponents, mantissas = codes >> 3, codes & 7
    normal = np.ldexp(1 + mantissas / 8, exponents - 7)
    values = np.where(exponents > 0, normal, np.ldexp(mantissas / 8, -6))
    values[127] = np.nan
    return np.concatenate([values, -values])


MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
CODES = {
    "mxfp8": e4m3(),
    **dict.fromkeys(("mxfp4", "nvfp4"), [*MAGNITUDES, *-MAGNITUDES]),
}
POWERS = np.append(np.ldexp(1.0, np.arange(255) - 127), np.inf)
SCALES = {"nvfp4": e4m3(), "mxfp4": POWERS, "mxfp8": POWERS}


def exact(
    mode: str, bits: int, group: int, given: Weights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return w_hat in float64, and the magnitude of its terms."""
    w, s, b = given
    each = np.unpackbits(w.cpu().numpy().view(np.uint8), axis=-1, bitorder="little")
    codes = each.reshape(len(w), -1, bits).astype(int) << np.arange(bits)
    codes = codes.sum(-1)
    q = torch.from_numpy(codes).cuda()
    if mode == "affine":
        s, b = (a.double().repeat_interleave(group, -1) for a in (s, b))
        return q * s + b, q * s.abs() + b.abs()
    values, scales = (torch.tensor(t[mode], device="cuda") for t in (CODES, SCALES))
    w_hat = values[q] * scales[s.long()].repeat_interleave(group, -1)
    return w_hat, w_hat.abs()

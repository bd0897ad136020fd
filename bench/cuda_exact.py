"""The exact weights of packed matrices, for bench.cuda_run."""

from __future__ import annotations

import numpy as np
import torch

from mlx_nibble.floats import CODES, SCALES

Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


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
    values, scales = (
        torch.from_numpy(t[mode]).cuda().double() for t in (CODES, SCALES)
    )
    w_hat = values[q] * scales[s.long()].repeat_interleave(group, -1)
    return w_hat, w_hat.abs()

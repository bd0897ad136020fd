"""Experts that a checkpoint stores one by one, stacked as mlx-lm has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from mlx_nibble.formats import Quantized

_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)")
_STACKED = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def stack_experts(matrices: Mapping[str, Quantized]) -> dict[str, Quantized]:
    """Return matrices with the experts of each layer as one.

    Experts of several widths or group sizes get the largest width and the smallest
    groups of them, which changes no weight.

    Raises:
        ValueError: If an expert is missing, or their shapes differ.
    """
    alone, experts = {}, {}
    for path, matrix in matrices.items():
        if found := _EXPERT.fullmatch(path):
            block, number, name = found.groups()
            stacked = f"{block}.switch_mlp.{_STACKED.get(name, name)}"
            experts.setdefault(stacked, {})[int(number)] = matrix
        else:
            alone[path] = matrix
    for stacked, by_number in experts.items():
        parts = [matrix for _, matrix in sorted(by_number.items())]
        shapes = {q.codes.shape for q in parts}
        if sorted(by_number) != list(range(len(parts))) or len(shapes) != 1:
            raise ValueError(
                f"[import] the experts of {stacked} must be numbered from 0 and be of "
                f"one shape but are {sorted(by_number)}, of {len(shapes)} shapes."
            )
        size = min(q.group_size for q in parts)
        alone[stacked] = Quantized(
            np.stack([q.codes for q in parts]),
            np.stack([q.scales.repeat(q.group_size // size, -1) for q in parts]),
            np.stack([q.biases.repeat(q.group_size // size, -1) for q in parts]),
            max(q.bits for q in parts),
        )
    return alone

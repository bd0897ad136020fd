"""Experts that a checkpoint stores one by one, stacked as mlx-lm has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from mlx_nibble.formats import Quantized
from mlx_nibble.io.packed_floats import Floats

_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)")
_STACKED = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def is_expert(path: str) -> bool:
    """Tell whether a matrix is one expert's."""
    return _EXPERT.fullmatch(path) is not None


def stack_experts(
    matrices: Mapping[str, Quantized | Floats],
) -> tuple[dict[str, Quantized | Floats], dict[str, np.ndarray]]:
    """Return matrices with the experts of each layer as one, and factors of these.

    Experts of several widths or group sizes get the largest width and the smallest
    groups of them, which changes no weight.

    Returns:
        Path to matrix, and path to the factor of each expert, where one is not 1.

    Raises:
        ValueError: If an expert is missing, or they do not fit together.
    """
    done: dict[str, Quantized | Floats] = {}
    factors: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, Quantized | Floats]] = {}
    for path, matrix in matrices.items():
        if found := _EXPERT.fullmatch(path):
            block, number, name = found.groups()
            stacked = f"{block}.switch_mlp.{_STACKED.get(name, name)}"
            experts.setdefault(stacked, {})[int(number)] = matrix
        else:
            done[path] = matrix
    for stacked, by_number in experts.items():
        parts = [matrix for _, matrix in sorted(by_number.items())]
        shapes = {_shape(part) for part in parts}
        if sorted(by_number) != list(range(len(parts))) or len(shapes) != 1:
            raise ValueError(
                f"[import] the experts of {stacked} must be numbered from 0 and be of "
                f"one shape and mode but are {sorted(by_number)}, of {len(shapes)} "
                "shapes or modes."
            )
        affine = [part for part in parts if isinstance(part, Quantized)]
        floats = [part for part in parts if isinstance(part, Floats)]
        done[stacked] = _affine(affine) if affine else _floats(floats)
        own = np.array([part.factor for part in floats])
        if (own != 1).any():
            factors[stacked] = own
    return done, factors


def _shape(part: Quantized | Floats) -> tuple[object, ...]:
    if isinstance(part, Floats):
        return (part.mode, part.words.shape)
    return ("affine", part.codes.shape)


def _affine(parts: Sequence[Quantized]) -> Quantized:
    size = min(q.group_size for q in parts)
    return Quantized(
        np.stack([q.codes for q in parts]),
        np.stack([q.scales.repeat(q.group_size // size, -1) for q in parts]),
        np.stack([q.biases.repeat(q.group_size // size, -1) for q in parts]),
        max(q.bits for q in parts),
    )


def _floats(parts: Sequence[Floats]) -> Floats:
    words = np.stack([f.words for f in parts])
    return Floats(parts[0].mode, words, np.stack([f.scales for f in parts]))

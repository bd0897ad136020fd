"""The text of a distillation: what it trains with, and what it holds out."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

# The share of the batches that training never sees, and that say when it ends.
_HELD_OUT = 1 / 8
_MOST_HELD_OUT = 16  # batches: a measurement takes no longer than some steps


@dataclass(frozen=True)
class Text:
    """Batches of a text.

    Attributes:
        tokens: All batches.
        seen: Indices of those to train with.
        kept: Indices of those that are held out.
    """

    tokens: list[mx.array]
    seen: list[int]
    kept: list[int]


def divided(tokens: list[mx.array]) -> Text:
    """Hold out some batches.

    Raises:
        ValueError: If none is left to train with.
    """
    held_out = max(1, min(_MOST_HELD_OUT, round(_HELD_OUT * len(tokens))))
    if len(tokens) <= held_out:
        raise ValueError(
            "[distill] at least two batches of text are required but there is "
            f"{len(tokens)}: use a longer --calibration text or more --samples."
        )
    # Held-out batches lie between the others, so they are of the same text.
    step = len(tokens) // held_out
    kept = list(range(step // 2, len(tokens), step))[:held_out]
    return Text(tokens, [i for i in range(len(tokens)) if i not in kept], kept)

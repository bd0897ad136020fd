"""Draws horizontal bars with their values, for the pictures of README and docs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_nibble.pictures.style import INK


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Name, left of the bar.
        value: Length.
        text: Text right of the bar.
        color: Fill.
        hatch: Pattern that tells bars apart without colour.
        error: Half the length of the error bar.
    """

    label: str
    value: float
    text: str
    color: str
    hatch: str = ""
    error: float = 0.0


def horizontal(axis: Any, bars: Sequence[Bar], room: float = 1.25) -> None:
    """Draw bars from 0, the first at the top.

    Args:
        axis: Axes to draw into.
        bars: Bars to draw.
        room: Length of the axis, in lengths of the longest bar: the text needs it.
    """
    for y, bar in enumerate(bars):
        axis.barh(
            y, bar.value, 0.66, color=bar.color, hatch=bar.hatch, edgecolor="white"
        )
        if bar.error:
            axis.errorbar(bar.value, y, xerr=bar.error, color=INK, capsize=2, lw=1)
        axis.annotate(
            bar.text,
            (bar.value + bar.error, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.set_xlim(0, room * max(bar.value + bar.error for bar in bars))
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)

"""Pictures of the loss of quantized models and matrices."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from mlx_nibble.pictures.style import MARKERS, card, look

_LINES = ("-", "--", "-.", ":")
_IN_LAYER = re.compile(r".*?\.?(\d+)\.(.+)")
_KL = "KL divergence, nats per token"


@dataclass(frozen=True)
class Point:
    """The size and the loss of one model.

    Attributes:
        label: Name of the model.
        bits_per_weight: Mean over all stored data.
        loss: Mean KL divergence from the reference, in nats.
        error: Standard error of the loss.
    """

    label: str
    bits_per_weight: float
    loss: float
    error: float


def loss_against_size(points: Sequence[Point]) -> Figure:
    """Draw the KL divergence of each model over its bits per weight."""
    places = [p.bits_per_weight for p in points]
    return _scattered(
        points, places, "Loss over size", "bits per weight, including scales and biases"
    )


def _scattered(
    points: Sequence[Point], places: Sequence[float], title: str, label: str
) -> Figure:
    with look():
        figure = card(8, 4.5, title)
        axes: Any = figure.add_subplot()
        # Models of one size lie above each other, and so would labels: use a legend.
        for p, x, marker in zip(points, places, itertools.cycle(MARKERS), strict=False):
            axes.errorbar(x, p.loss, p.error, fmt=marker, capsize=3, label=p.label)
        _legend(axes)
        if all(p.loss > p.error for p in points):
            axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel(_KL)
    return figure


def by_layer(losses: Mapping[str, float]) -> Figure:
    """Draw the loss of each matrix in 4 bits: a line for each kind, over the layers.

    Args:
        losses: KL divergence of each matrix, by its path in the model.
    """
    kinds: dict[str, dict[int, float]] = {}
    outside: dict[str, float] = {}
    for name, loss in losses.items():
        if found := _IN_LAYER.fullmatch(name):
            kinds.setdefault(found[2], {})[int(found[1])] = loss
        else:
            outside[name] = loss
    with look():
        figure = card(8.5, 4.6, "Loss when one matrix is in 4 bits")
        axes: Any = figure.add_subplot()
        for (kind, by_layer), marker, line in zip(
            kinds.items(), itertools.cycle(MARKERS), itertools.cycle(_LINES)
        ):
            x, y = zip(*sorted(by_layer.items()), strict=True)
            axes.plot(x, y, marker=marker, ls=line, lw=1.1, markersize=4, label=kind)
        for name, loss in outside.items():
            axes.axhline(loss, linestyle="--", color="0.3", lw=1.2, label=name)
        if all(loss > 0 for loss in losses.values()):
            axes.set_yscale("log")
        axes.set_xlabel("layer")
        axes.set_ylabel(_KL)
        _legend(axes)
    return figure


def _legend(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))

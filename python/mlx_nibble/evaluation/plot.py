"""Pictures of what quantizing costs. PNG or SVG, by the name of the file."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".png", ".svg")
# Points can be told apart in black and white, too.
_MARKERS = "os^Dv<>PX*"
_LINES = ("-", "--", "-.", ":")
_IN_LAYER = re.compile(r".*?\.?(\d+)\.(.+)")


@dataclass(frozen=True)
class Point:
    """One model: its size, and what it lost.

    Attributes:
        label: Its name.
        bits_per_weight: With all that is stored.
        loss: Mean KL divergence from the reference, in nats.
        error: Its standard error.
    """

    label: str
    bits_per_weight: float
    loss: float
    error: float


def require_picture(path: str) -> Path:
    """Check that a picture can be drawn before any work is done.

    Raises:
        ValueError: If it cannot be written, if its name tells no format that is
            drawn, or if matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "[plot] the package matplotlib is required: run pip install "
            "'mlx-nibble[plot]'."
        )
    if Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK):
        raise ValueError(
            f"[plot] a file that can be written is required but got {path!r}."
        )
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(
            f"[plot] a picture must be named .png or .svg but got {path!r}."
        )
    return Path(path)


def loss_against_size(points: Sequence[Point], path: Path) -> None:
    """Draw the KL divergence of each model over its bits per weight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    # Models of one size lie above each other: a legend, for labels would, too.
    for p, marker in zip(points, itertools.cycle(_MARKERS), strict=False):
        axes.errorbar(
            p.bits_per_weight, p.loss, p.error, fmt=marker, capsize=3, label=p.label
        )
    figure.legend(loc="outside right upper", frameon=False)
    if all(p.loss > p.error for p in points):
        axes.set_yscale("log")
    axes.set_xlabel("bits per weight, scales and biases counted")
    axes.set_ylabel("KL divergence from the reference (nats a token)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def sensitivity(losses: Mapping[str, float], path: Path) -> None:
    """Draw what each matrix loses in 4 bits: a line a kind over the layers.

    Args:
        losses: KL divergence of each matrix, by its path in the model.
        path: The picture.
    """
    from matplotlib.figure import Figure

    kinds: dict[str, dict[int, float]] = {}
    outside: dict[str, float] = {}
    for name, loss in losses.items():
        if found := _IN_LAYER.fullmatch(name):
            kinds.setdefault(found[2], {})[int(found[1])] = loss
        else:
            outside[name] = loss
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (kind, by_layer), marker, line in zip(
        kinds.items(), itertools.cycle(_MARKERS), itertools.cycle(_LINES), strict=False
    ):
        axes.plot(*zip(*sorted(by_layer.items()), strict=True), marker, ls=line, lw=1)
        axes.lines[-1].set(label=kind, markersize=4)
    for name, loss in outside.items():
        axes.axhline(loss, linestyle="--", color="0.4", label=name)
    if all(loss > 0 for loss in losses.values()):
        axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_ylabel("KL divergence with this matrix in 4 bits (nats a token)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)

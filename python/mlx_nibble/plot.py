"""Pictures of what quantizing costs. PNG or SVG, by the name of the file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".png", ".svg")


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
        ValueError: If its name tells no format that is drawn, or if matplotlib is
            not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "[plot] the package matplotlib is required: run pip install "
            "'mlx-nibble[plot]'."
        )
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(
            f"[plot] a picture must be named .png or .svg but got {path!r}."
        )
    return Path(path)


def loss_against_size(points: Sequence[Point], path: Path) -> None:
    """Draw the KL divergence of each model over its bits per weight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for p in points:
        axes.errorbar(p.bits_per_weight, p.loss, p.error, fmt="o", capsize=3)
        axes.annotate(
            p.label, (p.bits_per_weight, p.loss), (6, 6), textcoords="offset points"
        )
    if all(p.loss > p.error for p in points):
        axes.set_yscale("log")
    axes.set_xlabel("bits per weight, scales and biases counted")
    axes.set_ylabel("KL divergence from the reference (nats a token)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def sensitivity(losses: Mapping[str, float], path: Path) -> None:
    """Draw what each matrix loses in 4 bits, in the model's order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.16 * len(losses)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(list(losses), list(losses.values()))
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("KL divergence with this matrix in 4 bits (nats a token)")
    figure.savefig(path, dpi=150)

"""The style of all pictures: a light card, readable in black and white.

Candidates differ in marker, line and lightness. Ours are solid blue lines, MLX is
dashed, the dense product dotted. Each other library has its own marker and colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INK, PALE, EDGE = "#1b1f24", "#57606a", "#d0d7de"
OURS, OURS_LIGHT, MLX = "#0b3c7d", "#2f78c4", "#d1662a"
MARKERS = "os^Dv<>PX*"
"""Markers that can be told apart without colour."""

_STYLES: dict[str, dict[str, Any]] = {
    "nibble": {"label": "mlx-nibble", "marker": "o", "color": OURS},
    "nibble int8": {"label": "mlx-nibble, int8", "marker": "D", "color": OURS_LIGHT},
    "nibble repacked": {
        "label": "mlx-nibble, repacked",
        "marker": "o",
        "markerfacecolor": "white",
        "color": OURS,
    },
    "nibble int8 repacked": {
        "label": "mlx-nibble, int8, repacked",
        "marker": "D",
        "markerfacecolor": "white",
        "color": OURS_LIGHT,
    },
    "nibble batch-invariant": {
        "label": "mlx-nibble, batch-invariant",
        "marker": "P",
        "color": "#7fb2e5",
    },
    "nibble again": {
        "label": "mlx-nibble again",
        "marker": "x",
        "linestyle": "-.",
        "color": "#5b9bd5",
    },
    "mlx": {"label": "MLX", "marker": "s", "linestyle": "--", "color": MLX},
    "read": {
        "label": "limit: reads and FMAs",
        "marker": "",
        "linestyle": ":",
        "color": "black",
    },
    "dense": {"label": "dense", "marker": "^", "linestyle": ":", "color": "#8a8a8a"},
}
# Marker, line and colour of other libraries, in the order in which they appear.
_LIBRARIES: tuple[tuple[str, Any, str], ...] = (
    ("v", (0, (4, 1.5)), "#6a3d9a"),
    ("^", (0, (4, 1, 1, 1)), "#1b7837"),
    ("X", (0, (2, 1)), "#b8860b"),
    ("<", (0, (6, 1.5)), "#8b1e3f"),
    (">", (0, (1, 1)), "#5f6b76"),
)
_CYCLE = [OURS, MLX, "#1b7837", "#8b1e3f", "#6a3d9a", "#b8860b", "#7fb2e5", "#5f6b76"]
_LOOK: Any = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=_CYCLE),
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.markersize": 5,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.6,
    # One capsule always gives the same bytes.
    "svg.hashsalt": "mlx-nibble",
}
# A panel has room for this many entries of a legend.
_LEGEND_INSIDE = 4
# Inches: the left margin of the card, and the radius of its corners.
_PADDING, _RADIUS = 0.16, 0.12


def look() -> Any:
    """Return a context in which figures are drawn and written."""
    return rc_context(_LOOK)


def card(width: float, height: float, title: str, note: str = "") -> Figure:
    """Return a figure on a light card, which reads on a light and on a dark page.

    Args:
        width: Inches.
        height: Inches.
        title: Title of the picture.
        note: Small text below the drawing: the machine and the source.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    x = _PADDING / width
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(x, 0, 1 - 2 * x, 1), h_pad=0.11, hspace=0.02, wspace=0.04)
    background = FancyBboxPatch(
        (0.01, 0.01),
        width - 0.02,
        height - 0.02,
        boxstyle=f"round,pad=0,rounding_size={_RADIUS}",
        transform=figure.dpi_scale_trans,
        facecolor="white",
        edgecolor=EDGE,
        linewidth=0.8,
        zorder=-1,
    )
    background.set_in_layout(False)
    figure.add_artist(background)
    figure.suptitle(title, x=x, ha="left", fontsize=12, fontweight="bold")
    if note:
        figure.supxlabel(note, x=x, ha="left", fontsize=7.5, color=PALE)
    return figure


def settle(figure: Figure) -> None:
    """Lay a figure out, and round the places of its axes.

    The solver's last digits differ from run to run, and so would the picture's bytes.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis in figure.axes:
        left, bottom, width, height = axis.get_position().bounds
        axis.set_position(
            (round(left, 4), round(bottom, 4), round(width, 4), round(height, 4))
        )


def save(figure: Figure, path: Path) -> None:
    """Write a picture, PNG or SVG by its name."""
    with look():
        settle(figure)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def in_order(names: Iterable[str]) -> list[str]:
    """Return each name once, ours and MLX's first."""
    seen = dict.fromkeys(names)
    return [n for n in _STYLES if n in seen] + [n for n in seen if n not in _STYLES]


def style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Return how a candidate is drawn, among all names :func:`in_order`.

    A second variant of a library has the library's line with hollow markers.
    """
    if name in _STYLES:
        return _STYLES[name]
    others = [n for n in names if n not in _STYLES]
    libraries = list(dict.fromkeys(map(_library, others)))
    place = libraries.index(_library(name)) % len(_LIBRARIES)
    marker, line, color = _LIBRARIES[place]
    drawn = {
        "label": name,
        "marker": marker,
        "linestyle": line,
        "linewidth": 1.1,
        "color": color,
    }
    alike = [n for n in others if (_library(n), is_int8(n)) == _kind(name)]
    return {**drawn, "markerfacecolor": "white"} if alike.index(name) else drawn


def is_int8(name: str) -> bool:
    """Return whether a candidate rounds activations to int8."""
    return "int8" in name.split()


def _library(name: str) -> str:
    return name.split()[0]


def _kind(name: str) -> tuple[str, bool]:
    return _library(name), is_int8(name)


def counts_axis(axis: Axes, counts: Iterable[int], label: str) -> None:
    """Scale an x axis for numbers that double, with a tick for each."""
    axis.set_xscale("log", base=2)
    ticks = sorted(set(counts))
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel(label)


def legend(axis: Any, **options: Any) -> None:
    """Draw a legend: inside the panel if there is room, else below it."""
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) > _LEGEND_INSIDE:
        options = {
            "loc": "upper left",
            "bbox_to_anchor": (-0.02, -0.17),
            "ncols": 2,
            "fontsize": 8,
            **options,
        }
    axis.legend(handles, labels, **options)


def device(capsule: dict[str, Any]) -> str:
    """Return a short description of the machine of a run."""
    machine = capsule["machine"]
    name = machine["cpu"] if machine["device"] == "cpu" else machine["gpu"]
    return f"{name}, {machine['threads']} threads, mlx {capsule['versions'].get('mlx')}"

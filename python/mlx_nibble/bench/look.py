"""How pictures of runs look: the same in black and white.

Candidates differ in marker, line and lightness. Ours are solid lines, from dark to
light; MLX is dashed, the dense product dotted; peers are thin, grey, and told apart by
their markers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_STYLES: dict[str, dict[str, Any]] = {
    "nibble": {"label": "mlx-nibble", "marker": "o", "color": "#0b3c7d"},
    "nibble int8": {"label": "mlx-nibble, int8", "marker": "D", "color": "#2f78c4"},
    "nibble repacked": {
        "label": "mlx-nibble, repacked",
        "marker": "o",
        "markerfacecolor": "white",
        "color": "#0b3c7d",
    },
    "nibble int8 repacked": {
        "label": "mlx-nibble, int8, repacked",
        "marker": "D",
        "markerfacecolor": "white",
        "color": "#2f78c4",
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
    "mlx": {"label": "MLX", "marker": "s", "linestyle": "--", "color": "#d1662a"},
    "read": {
        "label": "reading the weights, fp32 FMA",
        "marker": "",
        "linestyle": ":",
        "color": "black",
    },
    "dense": {"label": "dense", "marker": "^", "linestyle": ":", "color": "#8a8a8a"},
}
_OTHERS = "vx+*<>1p"
_LOOK: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "lines.markersize": 5,
    "lines.linewidth": 1.6,
    # The same capsule gives the same bytes.
    "svg.hashsalt": "mlx-nibble",
}
# More do not fit into a panel.
_LEGEND_INSIDE = 4


def look() -> Any:
    """A context in which figures are drawn and written."""
    return rc_context(_LOOK)


def save(figure: Figure, path: Path) -> None:
    """Write a picture, PNG or SVG by its name."""
    with look():
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def in_order(names: Iterable[str]) -> list[str]:
    """Each once, ours and MLX's first."""
    seen = dict.fromkeys(names)
    return [n for n in _STYLES if n in seen] + [n for n in seen if n not in _STYLES]


def style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """How a candidate is drawn, among all :func:`in_order`."""
    if name in _STYLES:
        return _STYLES[name]
    others = [n for n in names if n not in _STYLES]
    return {
        "label": name,
        "marker": _OTHERS[others.index(name) % len(_OTHERS)],
        "linestyle": (0, (5, 1, 1, 1)) if name.endswith("int8") else (0, (4, 2)),
        "linewidth": 0.9,
        "color": "0.45",
    }


def counts_axis(axis: Axes, counts: Iterable[int], label: str) -> None:
    """Numbers that double, each with its tick."""
    axis.set_xscale("log", base=2)
    ticks = sorted(set(counts))
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel(label)


def legend(figure: Any, axis: Axes, names: Sequence[str]) -> None:
    """In the panel where there is room, else beside all."""
    if len(names) <= _LEGEND_INSIDE:
        axis.legend()
    else:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")


def device(capsule: dict[str, Any]) -> str:
    """What a run was made on, in a few words."""
    machine = capsule["machine"]
    name = machine["cpu"] if machine["device"] == "cpu" else machine["gpu"]
    return f"{name}, {machine['threads']} threads, mlx {capsule['versions'].get('mlx')}"

"""Pictures of a run: speed over rows, roofline, map of ratios.

Readable in black and white: candidates differ in marker, line and lightness, and the
cells of the map hold their numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.kernels import Row, rows

_BLUE = "#0b3c7d"
_STYLES: dict[str, dict[str, Any]] = {
    "nibble": {
        "label": "mlx-nibble",
        "marker": "o",
        "linestyle": "-",
        "color": "#0b3c7d",
    },
    "mlx": {"label": "MLX", "marker": "s", "linestyle": "--", "color": "#d1662a"},
    "dense": {"label": "dense", "marker": "^", "linestyle": ":", "color": "#8a8a8a"},
    "nibble again": {
        "label": "mlx-nibble again",
        "marker": "x",
        "linestyle": "-.",
        "color": "#5b9bd5",
    },
}
_STYLES["nibble int8"] = {
    "label": "mlx-nibble, int8",
    "marker": "D",
    "linestyle": "-",
    "color": "#6f9fd8",
}
_STYLES["nibble repacked"] = {
    "label": "mlx-nibble, repacked",
    "marker": "o",
    "markerfacecolor": "white",
    "linestyle": "-",
    "color": "#0b3c7d",
}
_STYLES["nibble int8 repacked"] = {
    "label": "mlx-nibble, int8, repacked",
    "marker": "D",
    "markerfacecolor": "white",
    "linestyle": "-",
    "color": "#6f9fd8",
}
_STYLES["read"] = {
    "label": "reading the weights once",
    "marker": "",
    "linestyle": ":",
    "color": "black",
}
# Of peers that have no style of their own, in the order in which they come.
_OTHERS = ["v", "x", "+", "*", "<", ">", "P", "1"]
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
_COLUMNS = 3


def save(figure: Figure, path: Path) -> None:
    """Write a picture, PNG or SVG by its name."""
    with rc_context(_LOOK):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def overview(capsule: Capsule) -> Figure:
    """All pictures of a run of kernels in one."""
    found = list(rows(capsule))
    shapes = list(dict.fromkeys(_shape(row) for row in found))
    lines = -(-len(shapes) // _COLUMNS)
    mapped = any(row.name == "mlx" for row in found)
    with rc_context(_LOOK):
        figure = Figure(figsize=(12, 3.1 * lines + 4.6), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=[3.1 * lines, 4.3])
        upper, lower = halves
        _speed(upper, found, shapes)
        axes = lower.subplots(1, 2 if mapped else 1, squeeze=False)[0]
        _roofline(axes[0], capsule, found)
        if mapped:
            _ratios(axes[1], found, shapes)
        figure.suptitle(title(capsule), fontsize=11)
    return figure


def speed(capsule: Capsule) -> Figure:
    """Rows a second over rows, a panel for each shape."""
    found = list(rows(capsule))
    shapes = list(dict.fromkeys(_shape(row) for row in found))
    lines = -(-len(shapes) // _COLUMNS)
    with rc_context(_LOOK):
        figure = Figure(figsize=(12, 3.1 * lines + 0.4), layout="constrained")
        _speed(figure, found, shapes)
        figure.suptitle(title(capsule), fontsize=11)
    return figure


def roofline(capsule: Capsule) -> Figure:
    """Each product under the lines that bandwidth and arithmetic draw."""
    with rc_context(_LOOK):
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        _roofline(figure.subplots(), capsule, list(rows(capsule)))
    return figure


def ratios(capsule: Capsule) -> Figure | None:
    """How many times faster than MLX, over shapes and rows; None without MLX."""
    found = list(rows(capsule))
    if not any(row.name == "mlx" for row in found):
        return None
    shapes = list(dict.fromkeys(_shape(row) for row in found))
    with rc_context(_LOOK):
        figure = Figure(figsize=(7, 1.9 + 0.42 * len(shapes)), layout="constrained")
        _ratios(figure.subplots(), found, shapes)
    return figure


def title(capsule: Capsule) -> str:
    """What was measured, and on what."""
    machine = capsule["machine"]
    name = machine["cpu"] if machine["device"] == "cpu" else machine["gpu"]
    kept = "hot" if capsule["settings"].get("hot") else "cold"
    return (
        f"Quantized products, {kept} weights: {name}, {machine['threads']} threads, "
        f"mlx {capsule['versions'].get('mlx')}"
    )


def _style(name: str, names: Sequence[str]) -> dict[str, Any]:
    if name in _STYLES:
        return _STYLES[name]
    others = [n for n in names if n not in _STYLES]
    return {
        "label": name,
        "marker": _OTHERS[others.index(name) % len(_OTHERS)],
        "linestyle": "-." if name.endswith("int8") else "--",
        "linewidth": 0.9,
        "color": "0.45",
    }


def _names(found: list[Row]) -> list[str]:
    """Of all candidates: those with a style of their own first, as in the legend."""
    seen = dict.fromkeys(row.name for row in found)
    return [n for n in _STYLES if n in seen] + [n for n in seen if n not in _STYLES]


def _shape(row: Row) -> str:
    case = row.case
    return f"{case.N} × {case.K}, {case.bits} bits g{case.group_size}, {case.dtype}"


def _speed(figure: Any, found: list[Row], shapes: list[str]) -> None:
    lines = -(-len(shapes) // _COLUMNS)
    columns = min(_COLUMNS, len(shapes))
    axes: Any = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    names = _names(found)
    for axis, shape in zip(axes, shapes, strict=False):
        curves: dict[str, list[Row]] = defaultdict(list)
        for row in found:
            if _shape(row) == shape:
                curves[row.name].append(row)
        for name, points in curves.items():
            points.sort(key=lambda row: row.case.rows)
            count = np.array([row.case.rows for row in points])
            seconds, low, high = (
                np.array([getattr(row.seconds, part) for row in points])
                for part in ("value", "low", "high")
            )
            style = _style(name, names)
            axis.plot(count, count / seconds, **style)
            axis.fill_between(
                count,
                count / high,
                count / low,
                color=style["color"],
                alpha=0.2,
            )
        _rows_axis(axis, {row.case.rows for row in found if _shape(row) == shape})
        axis.set_yscale("log")
        axis.set_title(shape)
    for axis in list(axes):
        axis.set_axis_off()
    first = figure.axes[0]
    first.set_ylabel("rows a second")
    first.legend()


def _rows_axis(axis: Axes, counts: Iterable[int]) -> None:
    axis.set_xscale("log", base=2)
    ticks = sorted(counts)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("rows of x")


def _roofline(axis: Axes, capsule: Capsule, found: list[Row]) -> None:
    bandwidth = capsule["peaks"]["read_bytes_per_second"]
    peak = capsule["peaks"]["flops_per_second"]
    seen = []
    names = _names(found)
    for name in names:
        style = _style(name, names)
        points = [row for row in found if row.name == name]
        x = [row.flops_per_second / row.bytes_per_second for row in points]
        y = [row.flops_per_second / 1e9 for row in points]
        if points:
            marks = {**style, "linestyle": "", "alpha": 0.85}
            axis.plot(x, y, **marks)
        seen += x
    reach = np.geomspace(min(seen) / 2, max(*seen, peak / bandwidth) * 2, 200)
    axis.plot(reach, np.minimum(reach * bandwidth, peak) / 1e9, color="black", lw=1.2)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.axvline(peak / bandwidth, color="black", lw=0.6, ls=":")
    axis.set_xlabel("operations for each byte that must be moved")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(
        f"Roof: {bandwidth / 1e9:.0f} GB/s read, {peak / 1e9:.0f} GFLOP/s multiplied"
    )
    axis.legend(loc="center right")


def _ratios(axis: Axes, found: list[Row], shapes: list[str]) -> None:
    counts = sorted({row.case.rows for row in found if row.name == "mlx"})
    cells = np.full((len(shapes), len(counts)), np.nan)
    for row in found:
        if row.name == "mlx":
            cells[shapes.index(_shape(row)), counts.index(row.case.rows)] = (
                row.faster.value
            )
    low, high = min(1.0, np.nanmin(cells)), max(2.0, np.nanmax(cells))
    axis.imshow(
        np.ma.masked_invalid(cells),
        cmap="Blues",
        norm=LogNorm(low, high),
        aspect="auto",
    )
    for (y, x), value in np.ndenumerate(cells):
        if np.isnan(value):
            axis.text(x, y, "–", ha="center", va="center", color="0.5")
            continue
        dark = np.log(value / low) / np.log(high / low) > 0.55
        digits = 2 if value < 2 else 1 if value < 10 else 0
        axis.text(
            x,
            y,
            f"{value:.{digits}f}×",
            ha="center",
            va="center",
            color="white" if dark else "black",
            weight="bold" if value < 1 else "normal",
        )
        if value < 1:
            # Slower than MLX: hatched, whatever the printer.
            axis.fill(
                [x - 0.5, x + 0.5, x + 0.5, x - 0.5],
                [y - 0.5, y - 0.5, y + 0.5, y + 0.5],
                hatch="///",
                fill=False,
                lw=0,
                edgecolor="0.4",
            )
    axis.set_xticks(range(len(counts)), [str(count) for count in counts])
    axis.set_yticks(range(len(shapes)), [s.replace(", ", "\n", 1) for s in shapes])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.tick_params(length=0)
    axis.set_xlabel("rows of x")
    axis.set_title("Times faster than MLX")

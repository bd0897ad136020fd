"""Pictures of a run of kernels: speed over rows, roofline, map of ratios.

The style is that of :mod:`style`; each cell of the map holds its number.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.kernels import ProductRow, rows
from mlx_nibble.pictures.style import (
    PALE,
    card,
    counts_axis,
    device,
    in_order,
    is_int8,
    legend,
    look,
    style,
)

_COLUMNS = 3
_PANEL_HEIGHT = 3.1
# A panel with more curves than this is split by the type of the activations.
_CURVES = 7
# The bound that bench.against_cpu_libraries measures: a read of the same bytes.
_READ = "read"


@dataclass(frozen=True)
class _Panel:
    """The curves of one shape, or one half of them.

    Attributes:
        title: Heading.
        curves: Rows of the capsule by candidate, in the order of drawing.
    """

    title: str
    curves: dict[str, list[ProductRow]]


def overview(capsule: Capsule) -> Figure:
    """Draw all pictures of a run of kernels in one."""
    found = list(rows(capsule))
    panels = _panels(found)
    height = _height(panels)
    mapped = any(row.name == "mlx" for row in found)
    with look():
        figure = card(12, height + 4.8, title(capsule), device(capsule))
        halves: Any = figure.subfigures(2, 1, height_ratios=[height, 4.3])
        upper, lower = halves
        _speed(upper, capsule, panels)
        axes = lower.subplots(1, 2 if mapped else 1, squeeze=False)[0]
        _roofline(axes[0], capsule, found)
        if mapped:
            _ratios(axes[1], found)
    return figure


def speed(capsule: Capsule) -> Figure:
    """Draw rows per second over rows, with a panel for each shape."""
    panels = _panels(list(rows(capsule)))
    with look():
        width = 3.5 * max(2.4, min(_COLUMNS, len(panels)))
        figure = card(width, _height(panels) + 0.9, title(capsule), device(capsule))
        _speed(figure, capsule, panels)
    return figure


def roofline(capsule: Capsule) -> Figure:
    """Draw each product under the limits of bandwidth and arithmetic."""
    with look():
        figure = card(7, 4.8, title(capsule), device(capsule))
        _roofline(figure.subplots(), capsule, list(rows(capsule)))
    return figure


def ratios(capsule: Capsule) -> Figure | None:
    """Draw how many times faster than MLX we are; return None without MLX."""
    found = list(rows(capsule))
    if not any(row.name == "mlx" for row in found):
        return None
    shapes = len({_shape(row) for row in found})
    with look():
        figure = card(7, 2.6 + 0.42 * shapes, title(capsule), device(capsule))
        _ratios(figure.subplots(), found)
    return figure


def title(capsule: Capsule) -> str:
    """Return the heading of a run's pictures; it names the shape if there is one."""
    kept = "hot" if capsule["settings"].get("hot") else "cold"
    shapes = {_shape(row) for row in rows(capsule)}
    which = f"{shapes.pop()}, " if len(shapes) == 1 else ""
    return f"Quantized products, {which}{kept} weights"


def _shape(row: ProductRow) -> str:
    case = row.case
    return f"{case.N} × {case.K}, {case.bits} bits g{case.group_size}, {case.dtype}"


def _panels(found: list[ProductRow]) -> list[_Panel]:
    """Return a panel for each shape, or two: exact and int8 activations."""
    names = in_order(row.name for row in found)
    halves = {"": names}
    if len(names) > _CURVES:
        halves = {
            "exact activations": [n for n in names if n == _READ or not is_int8(n)],
            "int8 activations": [n for n in names if n == _READ or is_int8(n)],
        }
    curves: dict[str, dict[str, list[ProductRow]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in sorted(found, key=lambda row: row.case.rows):
        curves[_shape(row)][row.name].append(row)
    return [
        _Panel(
            ", ".join(filter(None, [shape if len(curves) > 1 else "", half])),
            {n: by_name[n] for n in some if n in by_name},
        )
        for shape, by_name in curves.items()
        for half, some in halves.items()
    ]


def _height(panels: list[_Panel]) -> float:
    """Return the height of the panels in inches, with their legends."""
    entries = max(len(panel.curves) for panel in panels)
    lines = -(-len(panels) // _COLUMNS)
    return _PANEL_HEIGHT * lines + (0.1 * entries if entries > 4 else 0)


def _speed(figure: Any, capsule: Capsule, panels: list[_Panel]) -> None:
    peak = capsule["peaks"]["flops_per_second"]
    names = in_order(name for panel in panels for name in panel.curves)
    split = len(names) > _CURVES
    lines, columns = -(-len(panels) // _COLUMNS), min(_COLUMNS, len(panels))
    grid: Any = figure.subplots(lines, columns, squeeze=False, sharey=True)
    axes = list(grid.flat)
    for axis, panel in zip(axes, panels, strict=False):
        longest = max(map(len, panel.curves.values()))
        for name, points in panel.curves.items():
            drawn = style(name, names)
            if split and name == drawn["label"]:
                drawn["label"] = name.removesuffix(" exact").removesuffix(" int8")
            if len(points) == 1 < longest:
                # One slow point alone would stretch the axis over decades.
                (row,) = points
                note = (
                    f"{drawn['label']}, only {row.case.rows} row: "
                    f"{row.case.rows / row.seconds.value:.0f} rows/s, below the axis"
                )
                at = {"transform": axis.transAxes, "va": "top", "color": PALE}
                axis.text(0.03, 0.98, note, fontsize=8, **at)
                continue
            _curve(axis, points, drawn, peak if name == _READ else None)
        counts_axis(
            axis,
            [r.case.rows for points in panel.curves.values() for r in points],
            "rows of x",
        )
        axis.set_yscale("log")
        axis.set_title(panel.title)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    axes[0].set_ylabel("rows per second")
    curves = [panel.curves.keys() for panel in panels]
    for axis, shown in zip(axes, curves, strict=False):
        if shown != curves[0] or axis is axes[0]:
            legend(axis)


def _curve(
    axis: Axes, points: list[ProductRow], drawn: dict[str, Any], peak: float | None
) -> None:
    """Draw one candidate; `peak` also bounds it by operations per second."""
    count = np.array([row.case.rows for row in points])
    seconds, low, high = (
        np.array([getattr(row.seconds, part) for row in points])
        for part in ("value", "low", "high")
    )
    if peak is not None:
        least = np.array([row.case.operations for row in points]) / peak
        seconds, low, high = (np.maximum(s, least) for s in (seconds, low, high))
    axis.plot(count, count / seconds, **drawn)
    axis.fill_between(
        count, count / high, count / low, color=drawn["color"], alpha=0.15, lw=0
    )


def _roofline(axis: Axes, capsule: Capsule, found: list[ProductRow]) -> None:
    bandwidth = capsule["peaks"]["read_bytes_per_second"]
    peak = capsule["peaks"]["flops_per_second"]
    seen = []
    names = in_order(row.name for row in found if row.name != _READ)
    for name in names:
        points = [row for row in found if row.name == name]
        x = [row.flops_per_second / row.bytes_per_second for row in points]
        y = [row.flops_per_second / 1e9 for row in points]
        if points:
            marks = {**style(name, names), "linestyle": "", "alpha": 0.85}
            axis.plot(x, y, **marks)
        seen += x
    reach = np.geomspace(min(seen) / 2, max(*seen, peak / bandwidth) * 2, 200)
    axis.plot(reach, np.minimum(reach * bandwidth, peak) / 1e9, color="black", lw=1.2)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.axvline(peak / bandwidth, color="black", lw=0.6, ls=":")
    axis.set_xlabel("operations per byte moved")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(
        f"Roofline: reads {bandwidth / 1e9:.0f} GB/s, {peak / 1e9:.0f} GFLOP/s"
    )
    if len(names) <= 4:
        axis.legend(loc="center right")


def _ratios(axis: Axes, found: list[ProductRow]) -> None:
    shapes = list(dict.fromkeys(_shape(row) for row in found))
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
            # Slower than MLX: the hatching shows without colour, too.
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

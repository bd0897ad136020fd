"""Pictures of a run: speed over rows, roofline, map of ratios.

Readable in black and white, as :mod:`look` says; the cells of the map hold their
numbers.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.kernels import Row, rows
from mlx_nibble.bench.look import (
    counts_axis,
    device,
    in_order,
    legend,
    look,
    style,
)

_COLUMNS = 3
# What bench_cpu measures in turn with products: a read of as many bytes.
_READ = "read"


def overview(capsule: Capsule) -> Figure:
    """All pictures of a run of kernels in one."""
    found = list(rows(capsule))
    shapes = list(dict.fromkeys(_shape(row) for row in found))
    lines = -(-len(shapes) // _COLUMNS)
    mapped = any(row.name == "mlx" for row in found)
    with look():
        figure = Figure(figsize=(12, 3.1 * lines + 4.6), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=[3.1 * lines, 4.3])
        upper, lower = halves
        _speed(upper, capsule, found, shapes)
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
    with look():
        width = 4 * max(2, min(_COLUMNS, len(shapes)))
        entries = len({row.name for row in found})
        height = max(3.1 * lines, 0.24 * entries + 0.8) + 0.4
        figure = Figure(figsize=(width, height), layout="constrained")
        _speed(figure, capsule, found, shapes)
        figure.suptitle(title(capsule), fontsize=11)
    return figure


def roofline(capsule: Capsule) -> Figure:
    """Each product under the lines that bandwidth and arithmetic draw."""
    with look():
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        _roofline(figure.subplots(), capsule, list(rows(capsule)))
    return figure


def ratios(capsule: Capsule) -> Figure | None:
    """How many times faster than MLX, over shapes and rows; None without MLX."""
    found = list(rows(capsule))
    if not any(row.name == "mlx" for row in found):
        return None
    shapes = list(dict.fromkeys(_shape(row) for row in found))
    with look():
        figure = Figure(figsize=(7, 1.9 + 0.42 * len(shapes)), layout="constrained")
        _ratios(figure.subplots(), found, shapes)
    return figure


def title(capsule: Capsule) -> str:
    """What was measured, and on what."""
    kept = "hot" if capsule["settings"].get("hot") else "cold"
    return f"Quantized products, {kept} weights: {device(capsule)}"


def _shape(row: Row) -> str:
    case = row.case
    return f"{case.N} × {case.K}, {case.bits} bits g{case.group_size}, {case.dtype}"


def _speed(figure: Any, capsule: Capsule, found: list[Row], shapes: list[str]) -> None:
    peak = capsule["peaks"]["flops_per_second"]
    lines = -(-len(shapes) // _COLUMNS)
    columns = min(_COLUMNS, len(shapes))
    axes: Any = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    names = in_order(row.name for row in found)
    for axis, shape in zip(axes, shapes, strict=False):
        curves: dict[str, list[Row]] = defaultdict(list)
        for row in found:
            if _shape(row) == shape:
                curves[row.name].append(row)
        for name in [n for n in names if n in curves]:
            points = curves[name]
            points.sort(key=lambda row: row.case.rows)
            count = np.array([row.case.rows for row in points])
            seconds, low, high = (
                np.array([getattr(row.seconds, part) for row in points])
                for part in ("value", "low", "high")
            )
            if name == _READ:  # no row comes sooner than it is multiplied
                least = np.array([row.case.operations for row in points]) / peak
                seconds, low, high = (
                    np.maximum(s, least) for s in (seconds, low, high)
                )
            look_of = style(name, names)
            axis.plot(count, count / seconds, **look_of)
            axis.fill_between(
                count,
                count / high,
                count / low,
                color=look_of["color"],
                alpha=0.2,
            )
        counts = [row.case.rows for row in found if _shape(row) == shape]
        counts_axis(axis, counts, "rows of x")
        axis.set_yscale("log")
        axis.set_title(shape)
    for axis in list(axes):
        axis.set_axis_off()
    first = figure.axes[0]
    first.set_ylabel("rows a second")
    legend(figure, first, names)


def _roofline(axis: Axes, capsule: Capsule, found: list[Row]) -> None:
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
    axis.set_xlabel("operations for each byte that must be moved")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(
        f"Roof: {bandwidth / 1e9:.0f} GB/s read, {peak / 1e9:.0f} GFLOP/s multiplied"
    )
    if len(names) <= 4:
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

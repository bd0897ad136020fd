"""Pictures of a run of a model: tokens per second over batch, and over context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.rates import ModelRow, rows
from mlx_nibble.pictures.style import (
    PALE,
    card,
    counts_axis,
    device,
    in_order,
    legend,
    look,
    style,
)

_MEASURES = {"prompt": "prompt tokens per second", "decode": "new tokens per second"}
_PANEL = (3.8, 2.9)
_AXES = ("batch", "context")

_Place = Callable[[ModelRow], int]


def over_batch(capsule: Capsule) -> Figure | None:
    """Draw a column of panels for each context; None if there is only one batch."""
    found = [row for row in rows(capsule) if row.case.mode != "speculative"]
    contexts = sorted({row.case.context for row in found})
    panels = [
        (f"context {n}", [r for r in found if r.case.context == n]) for n in contexts
    ]
    return _figure(capsule, panels, lambda row: row.case.batch, "sequences at once")


def over_context(capsule: Capsule) -> Figure | None:
    """Draw a column for each batch and for speculation; None if only one context."""
    found = list(rows(capsule))

    def kind(row: ModelRow) -> tuple[bool, int]:
        return row.case.mode == "speculative", row.case.batch

    panels = [
        (
            "speculative" if speculative else f"batch {batch}",
            [row for row in found if kind(row) == (speculative, batch)],
        )
        for speculative, batch in sorted(set(map(kind, found)))
    ]
    return _figure(capsule, panels, lambda row: row.case.context, "tokens of a prompt")


def overview(capsule: Capsule) -> Figure:
    """Draw a run over batch or over context, whichever it varied more."""
    found = list(rows(capsule))
    batches, contexts = ({getattr(r.case, name) for r in found} for name in _AXES)
    drawn = over_batch if len(batches) >= len(contexts) else over_context
    return drawn(capsule) or _draw(
        capsule, [("", found)], lambda row: row.case.batch, "sequences at once"
    )


def title(capsule: Capsule) -> str:
    """Return the heading of a run's pictures."""
    return str(capsule["settings"].get("model"))


def _figure(
    capsule: Capsule,
    panels: Sequence[tuple[str, list[ModelRow]]],
    place: _Place,
    label: str,
) -> Figure | None:
    """Return the picture, or None if there is only one place on its x axis."""
    if len({place(row) for _, points in panels for row in points}) < 2:
        return None
    return _draw(capsule, panels, place, label)


def _draw(
    capsule: Capsule,
    panels: Sequence[tuple[str, list[ModelRow]]],
    place: _Place,
    label: str,
) -> Figure:
    """Draw a row of panels for each measure; side by side if there is one column."""
    names = in_order(row.name for _, points in panels for row in points)
    alone = len(panels) == 1
    shape = (1, len(_MEASURES)) if alone else (len(_MEASURES), len(panels))
    heading = title(capsule) + (f", {panels[0][0]}" if alone and panels[0][0] else "")
    with look():
        size = (_PANEL[0] * shape[1] + 0.6, _PANEL[1] * shape[0] + 0.7)
        figure = card(*size, heading, device(capsule))
        grid: Any = figure.subplots(
            *shape, squeeze=False, sharey=False if alone else "row"
        )
        lines = grid.reshape(len(_MEASURES), len(panels))
        for line, (measure, unit) in zip(lines, _MEASURES.items(), strict=True):
            for axis, (subtitle, points) in zip(line, panels, strict=True):
                shown = [row for row in points if row.case.measure == measure]
                _panel(axis, shown, names, place)
                counts_axis(axis, [place(row) for row in points], label)
                axis.set_title(measure if alone else subtitle)
            line[0].set_ylabel(unit)
            line[0].set_ylim(bottom=0)
        legend(max(grid.flat, key=lambda axis: len(axis.lines)))
    return figure


def _panel(
    axis: Any, points: list[ModelRow], names: Sequence[str], place: _Place
) -> None:
    """Draw the curves of one panel, and say which candidates have none."""
    missing = []
    for name in names:
        own = sorted((row for row in points if row.name == name), key=place)
        drawn = style(name, names)
        if not own:
            missing.append(drawn["label"])
            continue
        at = np.array([place(row) for row in own])
        rates = [row.tokens_per_second for row in own]
        axis.plot(at, [rate.value for rate in rates], **drawn)
        axis.fill_between(
            at,
            [rate.low for rate in rates],
            [rate.high for rate in rates],
            color=drawn["color"],
            alpha=0.15,
            lw=0,
        )
    if missing:
        axis.text(
            0.03,
            0.03,
            f"not measured: {', '.join(missing)}",
            transform=axis.transAxes,
            fontsize=8,
            color=PALE,
        )

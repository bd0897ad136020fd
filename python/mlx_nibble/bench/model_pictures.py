"""Pictures of a run of a model: tokens a second over batch, and over context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.look import counts_axis, device, in_order, legend, look, style
from mlx_nibble.bench.rates import Row, rows

_MEASURES = {"prompt": "prompt tokens a second", "decode": "new tokens a second"}
_PANEL = (3.6, 2.7)


def over_batch(capsule: Capsule) -> Figure | None:
    """A column of panels for each context; None where only one batch was measured."""
    found = [row for row in rows(capsule) if row.case.mode != "speculative"]
    contexts = sorted({row.case.context for row in found})
    panels = [
        (f"context {n}", [r for r in found if r.case.context == n]) for n in contexts
    ]
    return _figure(capsule, panels, lambda row: row.case.batch, "sequences at once")


def over_context(capsule: Capsule) -> Figure | None:
    """A column for each batch, one for speculative decoding; None for one context."""
    found = list(rows(capsule))
    kinds = dict.fromkeys((r.case.mode == "speculative", r.case.batch) for r in found)
    panels = []
    for speculative, batch in sorted(kinds):
        title = "speculative" if speculative else f"batch {batch}"
        points = [
            r
            for r in found
            if (r.case.mode == "speculative", r.case.batch) == (speculative, batch)
        ]
        panels.append((title, points))
    return _figure(capsule, panels, lambda row: row.case.context, "tokens of a prompt")


def overview(capsule: Capsule) -> Figure:
    """The picture of a run: over whichever it varied more."""
    found = [row.case for row in rows(capsule)]
    batches, contexts = ({getattr(c, name) for c in found} for name in _AXES)
    drawn = over_batch if len(batches) >= len(contexts) else over_context
    return drawn(capsule) or _figure(
        capsule,
        [("", list(rows(capsule)))],
        lambda row: row.case.batch,
        "sequences at once",
        least=1,
    )


_AXES = ("batch", "context")


def title(capsule: Capsule) -> str:
    """What was measured, and on what."""
    return f"{capsule['settings'].get('model')}\n{device(capsule)}"


def _figure(
    capsule: Capsule,
    panels: Sequence[tuple[str, list[Row]]],
    place: Callable[[Row], int],
    label: str,
    least: int = 2,
) -> Any:
    """Measures below each other, panels side by side, or None of too few places."""
    everything = [row for _, points in panels for row in points]
    if len({place(row) for row in everything}) < least:
        return None
    names = in_order(row.name for row in everything)
    with look():
        size = (_PANEL[0] * len(panels) + 1, _PANEL[1] * len(_MEASURES) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        axes: Any = figure.subplots(
            len(_MEASURES), len(panels), squeeze=False, sharey="row"
        )
        for line, (measure, unit) in zip(axes, _MEASURES.items(), strict=True):
            for axis, (heading, points) in zip(line, panels, strict=True):
                for name in names:
                    _curve(
                        axis,
                        name,
                        names,
                        [
                            row
                            for row in points
                            if (row.name, row.case.measure) == (name, measure)
                        ],
                        place,
                    )
                counts_axis(axis, [place(row) for row in points], label)
                axis.set_yscale("log")
                axis.set_title(heading)
            line[0].set_ylabel(unit)
        legend(figure, axes[0][0], names)
        figure.suptitle(title(capsule), fontsize=11)
    return figure


def _curve(
    axis: Any,
    name: str,
    names: Sequence[str],
    points: list[Row],
    place: Callable[[Row], int],
) -> None:
    points = sorted(points, key=place)
    at = np.array([place(row) for row in points])
    rates = [row.tokens_per_second for row in points]
    drawn = style(name, names)
    axis.plot(at, [rate.value for rate in rates], **drawn)
    axis.fill_between(
        at,
        [rate.low for rate in rates],
        [rate.high for rate in rates],
        color=drawn["color"],
        alpha=0.2,
    )

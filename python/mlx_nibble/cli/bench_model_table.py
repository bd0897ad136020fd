"""Prints a run of a model as a table."""

from __future__ import annotations

from mlx_nibble.bench import rates
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.rates import ModelCase, ModelRow
from mlx_nibble.bench.statistics import passes_needed
from mlx_nibble.cli.console import milliseconds, out, table, times


def show(made: Capsule) -> None:
    """Print a capsule of a model."""
    machine, settings = made["machine"], made["settings"]
    out.print(
        f"{settings.get('model')} on the {machine['device'].upper()}: "
        f"{machine['cpu']}, {machine['threads']} threads, mlx "
        f"{made['versions']['mlx']}, mlx-lm {made['versions'].get('mlx-lm')}.",
        soft_wrap=True,
    )
    header = ["", "batch", "context", "", "tokens/s", "95 %", "nibble faster", "95 %"]
    shown = table([*header, "first token", "peak MB"], text_columns=1)
    shown.columns[3].justify = "left"
    last = None
    found = list(rates.rows(made))
    for row in found:
        case = row.case
        company = "speculative " if case.mode == "speculative" else ""
        label = [company + case.measure, str(case.batch), str(case.context)]
        shown.add_row(*(label if case != last else ["", "", ""]), *_cells(row))
        last = case
    out.print(shown)
    for row in found:
        if row.accepted is not None:
            out.print(
                f"{rates.describe(row.case)}: {row.accepted:.0%} of the tokens drafted "
                f"for {row.name} were accepted"
            )
    _show_limits(made)


def _cells(row: ModelRow) -> list[str]:
    rate, first = row.tokens_per_second, row.first_token_seconds
    enough = row.passes >= passes_needed()
    ratio = ["", ""] if row.name == "nibble" else times(row.faster)
    return [
        row.name,
        f"{rate.value:.1f}",
        f"{rate.low:.1f}–{rate.high:.1f}" if enough else "",
        ratio[0],
        ratio[1] if enough else "",
        "" if first is None else milliseconds(first),
        f"{row.peak_bytes / 1e6:.0f}",
    ]


def _show_limits(made: Capsule) -> None:
    """Print the candidates that took part in fewer passes or in none, and why."""
    for result in made["results"]:
        case = rates.describe(ModelCase(**result["case"]))
        for name, candidate in result["candidates"].items():
            if "skipped" in candidate:
                reason = f"left out: {candidate['skipped']}"
            elif "limited" in candidate:
                reason = candidate["limited"]
            else:
                continue
            out.print(f"{case}: {name}: {reason}", soft_wrap=True)

"""A run as one HTML file that needs nothing else: it can be mailed."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

from mlx_nibble.bench import rates
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.kernels import rows
from mlx_nibble.bench.statistics import Estimate
from mlx_nibble.pictures import generation, products
from mlx_nibble.pictures.style import settle

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --pale: #57606a; --paper: #fff;
  --line: #e3e6ea; --ours: #eef4fb; --code: #f3f4f6; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e8eb;
  --pale: #a0a8b2; --paper: #16191d; --line: #343a42; --ours: #1d2b3d;
  --code: #262b31; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.lead { color: var(--pale); margin-top: 0; }
figure { margin: 0; overflow-x: auto; }
svg { display: block; width: 100%; height: auto; margin: 0 auto; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .28rem .6rem; white-space: nowrap; }
th { border-bottom: 2px solid var(--ink); } td { border-bottom: 1px solid var(--line); }
th.text, td.text { text-align: left; }
tr.ours td { background: var(--ours); font-weight: 600; }
code { font-size: .85rem; background: var(--code); padding: .15rem .35rem;
  border-radius: 4px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem;
  font-size: .9rem; } dt { color: var(--pale); } dd { margin: 0; }
@media print { body { margin: 0; max-width: none; } figure { break-inside: avoid; } }
"""


def report(capsule: Capsule) -> str:
    """The page of a run, of any kind."""
    return (_kernels if capsule["kind"] == "kernels" else _model)(capsule)


def _kernels(capsule: Capsule) -> str:
    found = list(rows(capsule))
    ours = [row.faster.value for row in found if row.name == "mlx"]
    figures = {
        "Speed over rows": products.speed(capsule),
        "Under the machine's roof": products.roofline(capsule),
        "Times faster than MLX": products.ratios(capsule),
    }
    heading = ["M × N × K", "format", "", "time", "ours faster", "GB/s", "GFLOP/s"]
    table = [
        [
            f"{row.case.rows} × {row.case.N} × {row.case.K}",
            f"{row.case.bits} bits g{row.case.group_size} {row.case.dtype}",
            row.name,
            _seconds(row.seconds.value),
            _faster(row.name, row.faster),
            f"{row.bytes_per_second / 1e9:.1f}",
            f"{row.flops_per_second / 1e9:.1f}",
        ]
        for row in found
    ]
    return _page(
        capsule,
        products.title(capsule),
        "Quantized products",
        _lead(ours, capsule),
        figures,
        _table(heading, 3, table, [row.name == "nibble" for row in found]),
        {"weights": "hot" if capsule["settings"].get("hot") else "cold"},
    )


def _model(capsule: Capsule) -> str:
    found = list(rates.rows(capsule))
    ours = [row.faster.value for row in found if row.name == "mlx"]
    figures = {
        "Over sequences at once": generation.over_batch(capsule),
        "Over the prompt's length": generation.over_context(capsule),
    }
    heading = ["case", "", "tokens/s", "ours faster", "first token", "peak memory"]
    table = [
        [
            rates.describe(row.case),
            row.name,
            f"{row.tokens_per_second.value:.1f}",
            _faster(row.name, row.faster),
            _seconds(row.first_token_seconds),
            f"{row.peak_bytes / 1e6:.0f} MB",
        ]
        for row in found
    ]
    settings = capsule["settings"]
    facts = {"model": settings.get("model"), "draft model": settings.get("draft_model")}
    return _page(
        capsule,
        generation.title(capsule),
        str(settings.get("model")),
        _lead(ours, capsule),
        figures,
        _table(heading, 2, table, [row.name == "nibble" for row in found]),
        {key: value for key, value in facts.items() if value},
    )


def _lead(ours: Sequence[float], capsule: Capsule) -> str:
    peaks = capsule["peaks"]
    lead = ""
    if ours:
        low, high = min(ours), max(ours)
        lead = f"{low:.1f} to {high:.1f} times as fast as MLX in {len(ours)} cases. "
    return lead + (
        f"In the same run the machine read {peaks['read_bytes_per_second'] / 1e9:.1f} "
        f"GB/s and multiplied at {peaks['flops_per_second'] / 1e9:.0f} GFLOP/s."
    )


def _page(
    capsule: Capsule,
    title: str,
    heading: str,
    lead: str,
    figures: Mapping[str, Figure | None],
    table: str,
    facts: Mapping[str, str],
) -> str:
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(heading)}</h1>",
        f'<p class="lead">{escape(lead)}</p>',
    ]
    for name, figure in figures.items():
        if figure is not None:
            parts += [f"<h2>{escape(name)}</h2>", f"<figure>{_svg(figure)}</figure>"]
    parts += ["<h2>All cases</h2>", f'<div class="wide">{table}</div>']
    parts += ["<h2>How it was measured</h2>", _facts(capsule, facts), "</body></html>"]
    return "\n".join(parts) + "\n"


def _faster(name: str, ratio: Estimate) -> str:
    if name == "nibble":
        return ""
    return f"{ratio.value:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.2f} s"


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    settle(figure)
    figure.savefig(text, format="svg", metadata={"Date": None})
    # Inside a page, neither a declaration nor links to vocabularies are wanted.
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    # Neither so small in a narrow window that it cannot be read, nor blown up in a wide
    # one.
    inches = figure.get_figwidth()
    bounds = f"min-width:{60 * inches:.0f}px;max-width:{100 * inches:.0f}px"
    return svg.replace("<svg", f'<svg style="{bounds}"', 1)


def _table(
    heading: Sequence[str],
    text: int,
    table: Sequence[Sequence[str]],
    ours: Sequence[bool],
) -> str:
    """Cells of the first `text` columns are aligned at the left."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if at < text else ''}>{escape(cell)}</{tag}>"
            for at, cell in enumerate(row)
        )

    lines = [f"<tr>{cells('th', heading)}</tr>"]
    for row, own in zip(table, ours, strict=True):
        lines.append(f"<tr{' class=ours' if own else ''}>{cells('td', row)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _facts(capsule: Capsule, more: Mapping[str, str]) -> str:
    machine, versions = capsule["machine"], capsule["versions"]
    facts = {
        "processor": f"{machine.get('cpu')}, {machine.get('threads')} threads",
        "device": machine.get("gpu") or f"CPU, {machine.get('cpu_isa')}",
        "system": machine.get("system") or "not known",
        "power": machine.get("power") or "not known",
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
        **more,
        "started": capsule.get("started"),
        "complete": "yes" if capsule.get("complete") else "no: it was interrupted",
    }
    lines = [f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()]
    command = escape(" ".join(capsule["command"]))
    return f"<dl>{''.join(lines)}</dl><p><code>{command}</code></p>"

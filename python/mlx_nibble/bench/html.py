"""A run as one HTML file that needs nothing else: it can be mailed."""

from __future__ import annotations

import io
import re
from html import escape

from matplotlib.figure import Figure

from mlx_nibble.bench import pictures
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.kernels import Row, rows

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
  max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.lead { color: #57606a; margin-top: 0; }
figure { margin: 0; } svg { width: 100%; height: auto; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .28rem .6rem; white-space: nowrap; }
th { border-bottom: 2px solid #1b1f24; } td { border-bottom: 1px solid #e3e6ea; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.ours td { background: #eef4fb; font-weight: 600; }
code { font-size: .85rem; background: #f3f4f6; padding: .15rem .35rem;
  border-radius: 4px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem;
  font-size: .9rem; } dt { color: #57606a; } dd { margin: 0; }
@media print { body { margin: 0; max-width: none; } figure { break-inside: avoid; } }
"""


def report(capsule: Capsule) -> str:
    """The page of a run of kernels."""
    found = list(rows(capsule))
    peaks = capsule["peaks"]
    ours = [row.faster for row in found if row.name == "mlx"]
    lead = ""
    if ours:
        low, high = min(r.value for r in ours), max(r.value for r in ours)
        lead = f"{low:.1f} to {high:.1f} times as fast as MLX in {len(ours)} cases. "
    lead += (
        f"In the same run the machine read {peaks['read_bytes_per_second'] / 1e9:.1f} "
        f"GB/s and multiplied at {peaks['flops_per_second'] / 1e9:.0f} GFLOP/s."
    )
    figures = [
        ("Speed over rows", pictures.speed(capsule)),
        ("Under the machine's roof", pictures.roofline(capsule)),
        ("Times faster than MLX", pictures.ratios(capsule)),
    ]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(pictures.title(capsule))}</title>",
        f"<style>{_STYLE}</style></head><body>",
        "<h1>Quantized products</h1>",
        f'<p class="lead">{escape(lead)}</p>',
    ]
    for heading, figure in figures:
        if figure is not None:
            parts += [f"<h2>{escape(heading)}</h2>", f"<figure>{_svg(figure)}</figure>"]
    parts += ["<h2>All cases</h2>", '<div class="wide">', _table(found), "</div>"]
    parts += ["<h2>How it was measured</h2>", _facts(capsule), "</body></html>"]
    return "\n".join(parts) + "\n"


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    # Inside a page, neither a declaration nor links to vocabularies are wanted.
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)


def _table(found: list[Row]) -> str:
    heading = ["M × N × K", "format", "", "time", "ours faster", "GB/s", "GFLOP/s"]
    lines = ["".join(f"<th>{cell}</th>" for cell in heading)]
    for row in found:
        case = row.case
        ratio = f"{row.faster.value:.2f}× ({row.faster.low:.2f}–{row.faster.high:.2f})"
        cells = [
            f"{case.rows} × {case.N} × {case.K}",
            f"{case.bits} bits g{case.group_size} {case.dtype}",
            row.name,
            f"{1e3 * row.seconds.value:.3g} ms",
            "" if row.name == "nibble" else ratio,
            f"{row.bytes_per_second / 1e9:.1f}",
            f"{row.flops_per_second / 1e9:.1f}",
        ]
        mark = ' class="ours"' if row.name == "nibble" else ""
        inner = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr{mark}>{inner}</tr>")
    return f"<table><tr>{lines[0]}</tr>{''.join(lines[1:])}</table>"


def _facts(capsule: Capsule) -> str:
    machine, versions = capsule["machine"], capsule["versions"]
    facts = {
        "processor": f"{machine['cpu']}, {machine['threads']} threads",
        "device": machine.get("gpu") or f"CPU, {machine.get('cpu_isa')}",
        "system": machine["system"],
        "power": machine.get("power") or "not known",
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
        "weights": "hot" if capsule["settings"].get("hot") else "cold",
        "started": capsule["started"],
        "complete": "yes" if capsule["complete"] else "no: it was interrupted",
    }
    lines = [f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()]
    command = escape(" ".join(capsule["command"]))
    return f"<dl>{''.join(lines)}</dl><p><code>{command}</code></p>"

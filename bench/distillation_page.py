"""The table and the picture of docs/results/distillation.md, from its capsule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from mlx_nibble.pictures.style import MARKERS, card, look

Result = Mapping[str, Any]
Capsule = Mapping[str, Sequence[Result]]
"""The results of each model, as bench.distillation writes them."""

METHODS = {
    "rtn": "`mlx_lm.convert -q`",
    "dwq": "`mlx_lm.dwq`",
    "dynamic": "`mlx_lm.dynamic_quant`",
    "gptq": "ours",
    "grid": "ours, `--codes none`",
    "blocks": "ours, `--codes blocks`",
    "codes": "ours, `--distill`",
}

# One marker and one colour for each method, in both pictures.
STYLES = [{"marker": m, "color": f"C{i}"} for i, m in enumerate(MARKERS)]


def asked(result: Result) -> float:
    """Return the width of codes that a row asked for: a budget has none of its own."""
    return result["options"].get("target_bpw") or result["options"]["bits"]


def label(result: Result) -> str:
    """Return the name of a row, with the rate of one by mlx_lm.dwq."""
    name = METHODS[result["row"]]
    rate = result["options"]["dwq_rate"]
    return f"{name}, rate {rate:g}" if result["row"] == "dwq" else name


def tokens(result: Result) -> str:
    """Return how many tokens training saw, in millions."""
    options = result["options"]
    if result["row"] in ("rtn", "dynamic", "gptq"):
        return ""
    seen = result.get("steps", options["steps"]) * options["batch_size"]
    return f"{seen * options['length'] / 1e6:.1f} M"


def loss(found: Mapping[str, Any]) -> str:
    """Return the increase of the perplexity of a text, and the divergence."""
    increase, kl = found["comparison"]["increase"], found["comparison"]["kl"]["mean"]
    mean, error = 100 * increase["mean"], 100 * increase["error"]
    if mean >= 1000:
        return f"{mean / 100 + 1:.0f} times | {kl:.1f}"
    digits = 1 if error >= 0.5 else 2
    return f"{mean:+.{digits}f} % ± {error:.{digits}f} | {kl:.3f}"


def table(results: Sequence[Result]) -> str:
    """Return the table of one model."""
    texts = list(results[0]["texts"])
    names = " | ".join(f"{text} | KL" for text in texts)
    lines = [f"| bits a weight | | {names} | tokens | time | memory |"]
    lines.append("| --- " * (5 + 2 * len(texts)) + "|")
    order = list(METHODS)
    for r in sorted(results, key=lambda r: (asked(r), order.index(r["row"]))):
        cells = [f"{r['bits_per_weight']:.3f}", label(r)]
        cells += [loss(r["texts"][text]) for text in texts]
        timed = r["seconds"] is not None
        cells += [tokens(r), f"{r['seconds']:.0f} s" if timed else ""]
        cells += [f"{r['peak_bytes'] / 1e9:.1f} GB" if timed else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def over_bits(capsule: Capsule) -> Figure:
    """Draw the divergence over bits a weight, for each method."""
    text = "State of the Union"
    with look():
        title = "KL divergence from the original, nats per token (less is better)"
        note = f"{text}, 4088 tokens; bars of one standard error"
        figure = card(8.4, 4, title, note)
        axes: Any = figure.subplots(1, len(capsule), sharey=True)
        for axis, (model, results) in zip(axes, capsule.items(), strict=True):
            for style, (row, label) in zip(STYLES, METHODS.items(), strict=False):
                mine = best(results, row, text)
                if mine:
                    kl = [divergence(r, text) for r in mine]
                    axis.errorbar(
                        [r["bits_per_weight"] for r in mine],
                        [k["mean"] for k in kl],
                        [k["error"] for k in kl],
                        **style,
                        label=label.replace("`", ""),
                    )
            axis.set_title(model)
            axis.set_xlabel("bits per weight")
            axis.set_yscale("log")
        legend(axes)
    return figure


def best(results: Sequence[Result], row: str, text: str) -> list[Result]:
    """Return the best result of a row at each width, in the order of widths."""
    found: dict[float, Result] = {}
    for r in sorted(results, key=lambda r: -divergence(r, text)["mean"]):
        if r["row"] == row:
            found[r["bits_per_weight"]] = r
    return [found[bits] for bits in sorted(found)]


def divergence(result: Result, text: str) -> Mapping[str, float]:
    """Return the KL divergence on a text, and its error."""
    return result["texts"][text]["comparison"]["kl"]


def legend(axes: Any) -> None:
    """Explain the marks of all axes in the middle one."""
    known: dict[str, Any] = {}
    for axis in axes:
        marks, labels = axis.get_legend_handles_labels()
        known |= dict(zip(labels, marks, strict=True))
    axes[len(axes) // 2].legend(known.values(), known, fontsize=8)


def over_time(capsule: Capsule) -> Figure:
    """Draw the divergence of each model at 4 bits over the time that a row took."""
    text = "State of the Union"
    with look():
        figure = card(8.4, 3, "Loss over time, 4 bits in groups of 64", text)
        timed = {m: r for m, r in capsule.items() if all(x["seconds"] for x in r)}
        axes: Any = figure.subplots(1, len(timed))
        for axis, (model, results) in zip(axes, timed.items(), strict=True):
            for style, (row, label) in zip(STYLES, METHODS.items(), strict=False):
                for r in best(results, row, text):
                    if asked(r) == 4:
                        kl = divergence(r, text)
                        axis.errorbar(
                            max(1, total_seconds(r, results)),
                            kl["mean"],
                            kl["error"],
                            **style,
                            label=label.replace("`", ""),
                        )
            axis.set_title(model)
            axis.set_xlabel("seconds on an H200, quantization included")
            axis.set_xscale("log")
            axis.set_yscale("log")
        legend(axes)
    return figure


def total_seconds(result: Result, results: Sequence[Result]) -> float:
    """Return the time of a row, and of the quantization that it started from."""
    row = result["row"]
    start = "gptq" if row in ("codes", "blocks", "grid") else "rtn"
    before = sum(
        r["seconds"]
        for r in results
        if r["row"] == start != row and asked(r) == asked(result)
    )
    return result["seconds"] + before

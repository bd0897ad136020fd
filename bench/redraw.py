"""Draws the pictures of README and docs from the committed capsules.

python -m bench.redraw [NAME...]        # all of them, or some, as docs/images/NAME.svg
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from bench import distillation_page, time_model, timing
from bench.bars import Bar, horizontal
from bench.quantization import ROWS
from bench.readme import ROOT, load
from bench.tables import result_of
from mlx_nibble.pictures import generation, losses, products
from mlx_nibble.pictures.style import (
    MARKERS,
    MLX,
    OURS,
    OURS_LIGHT,
    card,
    device,
    look,
    save,
)
from tests.simt.plans import Problem, candidates

IMAGES = ROOT / "docs" / "images"
_LLAMA_CPP = "#5f6b76"


def tokens() -> Figure:
    """Tokens per second of MLX, llama.cpp and us: prompt and decode."""
    capsule = load("llama")
    labels = {
        "mlx": ("MLX", MLX, "\\\\\\\\"),
        "llama.cpp": ("llama.cpp", _LLAMA_CPP, "////"),
        "nibble int16": ("mlx-nibble", OURS, ""),
        "nibble int8": ("mlx-nibble, int8", OURS_LIGHT, ""),
    }
    with look():
        title = f"Tokens per second, {capsule['settings']['model']}"
        figure = card(8.4, 2.5, title, f"one sequence; {device(capsule)}")
        axes: Any = figure.subplots(1, 2, sharey=True)
        for axis, measure in zip(axes, ("prompt", "decode"), strict=True):
            found = timing.samples(result_of(capsule, measure, 128))
            rates = {n: 1 / statistics.median(seconds) for n, seconds in found.items()}
            # The fastest of its formats and ways.
            rates["llama.cpp"] = max(
                rate for n, rate in rates.items() if n.startswith("llama.cpp")
            )
            horizontal(
                axis,
                [
                    Bar(label, rates[name], number(rates[name]), color, hatch)
                    for name, (label, color, hatch) in labels.items()
                ],
            )
            axis.set_title({"prompt": "prompt of 128", "decode": "decode"}[measure])
    return figure


def number(value: float) -> str:
    """Return a rate in three digits."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def quantization() -> Figure:
    """KL divergence of SmolLM2 at 4.5 bits per weight, by tool."""
    capsule = load("quantization")
    rows = {
        "mlx": ("mlx_lm.convert", MLX, "\\\\\\\\"),
        "mlx-gptq": ("mlx_lm.gptq", MLX, "\\\\\\\\"),
        "mlx-awq": ("mlx_lm.awq", MLX, "\\\\\\\\"),
        "awq": ("mlx-nibble, awq", OURS_LIGHT, ""),
        "awq-gptq": ("mlx-nibble, awq+gptq", OURS_LIGHT, ""),
        "g64": ("mlx-nibble", OURS, ""),
    }
    with look():
        note = (
            "SmolLM2-135M-Instruct at 4.5 bits per weight; 2044 tokens of each text; "
            "bars of one standard error"
        )
        title = "KL divergence from float16, nats per token (less is better)"
        figure = card(8.4, 3, title, note)
        axes: Any = figure.subplots(1, 2, sharey=True)
        for axis, text in zip(axes, ("State of the Union", "Python docs"), strict=True):
            bars = []
            for name, (label, color, hatch) in rows.items():
                kl = capsule[name][text]["comparison"]["kl"]
                value = f"{kl['mean']:.3f}"
                bars.append(Bar(label, kl["mean"], value, color, hatch, kl["error"]))
            horizontal(axis, bars)
            axis.set_title(text)
            axis.set_xlim(0, 0.65)
    return figure


def loss_over_bits() -> Figure:
    """KL divergence of SmolLM2 over bits per weight, for all methods."""
    text = "State of the Union"
    points = []
    for name, result in load("quantization").items():
        kl = result[text]["comparison"]["kl"]
        label = ROWS[name].label.replace("`", "")
        bits = result["bits_per_weight"]
        points.append(losses.Point(label, bits, kl["mean"], kl["error"]))
    return losses.loss_against_size(points)


def sensitivity() -> Figure:
    """KL divergence of SmolLM2 with one matrix in 4 bits."""
    return losses.by_layer(load("sensitivity")["kl"])


def predicted() -> Figure:
    """MLX's predicted time over ours, over the rows of x, for some chips."""
    N = K = 4096
    rows = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
    with look():
        title = f"Predicted, not measured: MLX's time over ours, {N} × {K}, 4 bits"
        note = (
            "a model (docs/internals/simt.md); above 1, ours is predicted to be faster"
        )
        figure = card(8.4, 3, title, note)
        axis: Any = figure.subplots()
        for chip, marker in zip(time_model.CHIPS[::2], MARKERS, strict=False):
            ratios = []
            for M in rows:
                p = Problem(M=M, N=N, K=K)
                ours = time_model.ours(p, candidates(p, chip.device)[0])
                mlx = time_model.seconds(time_model.mlx(p, chip), chip)
                ratios.append(mlx / time_model.seconds(ours, chip))
            axis.plot(rows, ratios, marker=marker, label=chip.name)
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_xticks(rows[:6:1] + (8, 16, 32, 64, 128, 256, 512))
        axis.set_xticklabels(
            [*map(str, rows[:4]), "", "6", "8", *map(str, (16, 32, 64, 128, 256, 512))]
        )
        axis.set_xlabel("rows of x")
        axis.set_ylabel("predicted ratio")
        axis.legend(ncols=3)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "tokens": tokens,
    "matmul": lambda: products.speed(load("matmul")),
    "cpu": lambda: products.speed(load("cpu")),
    "generation": lambda: generation.overview(load("generation")),
    "quantization": quantization,
    "loss_over_bits": loss_over_bits,
    "distillation": lambda: distillation_page.over_bits(load("distillation")),
    "distillation_time": lambda: distillation_page.over_time(load("distillation")),
    "sensitivity": sensitivity,
    "predicted": predicted,
}


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="*", choices=[[], *PICTURES])
    for name in parser.parse_args().name or PICTURES:
        save(PICTURES[name](), IMAGES / f"{name}.svg")


if __name__ == "__main__":
    main()

"""Draw a capsule of bench_cpu: products a second over rows, and what bounds them.

    python -m bench.plot_cpu bench/capsules/cpu.json cpu.svg

One panel a shape. A row cannot come faster than its weights are read, nor than its
products are multiplied: the dotted line is the lower of both, as measured in the run.
Needs matplotlib (the `plot` extra).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

OURS = {
    "exact": dict(label="mlx-nibble, exact", marker="o", color="#1f5fa8"),
    "int8": dict(label="mlx-nibble, int8", marker="D", color="#b3401f"),
}
MARKERS = ["s", "^", "v", "x", "+", "*", "<", ">"]


def draw(capsule: dict, target: str) -> None:
    panels = defaultdict(list)
    for result in capsule["results"]:
        panels[result["case"]["N"], result["case"]["K"]].append(result)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 4.6), squeeze=False, sharey=True
    )
    for axis, ((N, K), results) in zip(axes[0], panels.items(), strict=True):
        results.sort(key=lambda r: r["case"]["rows"])
        names = list(dict.fromkeys(n for r in results for n in r["seconds"]))
        for name in names:
            axis.plot(*line(results, name), **style(name, names))
        rows = [r["case"]["rows"] for r in results]
        bound = [roofline(capsule, r) for r in results]
        axis.plot(rows, bound, ":k", label="read bandwidth, fp32 FMA")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(rows, [str(r) for r in rows])
        axis.set_xlabel("rows of x")
        axis.set_title(f"{N} × {K}")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("rows a second")
    axes[0][-1].legend(fontsize=7)
    figure.suptitle(
        f"4-bit products, {'hot' if capsule['hot'] else 'cold'} weights, "
        f"{capsule['machine']['threads']} threads of a CPU",
        fontsize=10,
    )
    figure.tight_layout()
    # Reproducible: the same capsule gives the same bytes.
    plt.rcParams["svg.hashsalt"] = "mlx-nibble"
    figure.savefig(target, metadata={"Date": None})


def line(results: list[dict], name: str) -> tuple[list[int], list[float]]:
    """Rows, and rows a second, where this one took part."""
    with_it = [r for r in results if name in r["seconds"]]
    rows = [r["case"]["rows"] for r in with_it]
    taken = [statistics.median(r["seconds"][name]) for r in with_it]
    return rows, [count / t for count, t in zip(rows, taken, strict=True)]


def style(name: str, names: list[str]) -> dict:
    if name in OURS:
        return dict(linestyle="-", **OURS[name])
    marker = MARKERS[names.index(name) % len(MARKERS)]
    dashes = "-." if name.endswith("int8") else "--"
    return dict(label=name, linestyle=dashes, marker=marker, alpha=0.6, markersize=4)


def roofline(capsule: dict, result: dict) -> float:
    """Rows a second, of products in float32."""
    case = result["case"]
    read = capsule["read_bandwidth"] * case["rows"] / result["weight_bytes"]
    return min(read, capsule["fma_peak"] / (2 * case["N"] * case["K"]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plot_cpu")
    parser.add_argument("capsule")
    parser.add_argument("target", help="a .svg file")
    args = parser.parse_args(argv)
    with open(args.capsule) as f:
        draw(json.load(f), args.target)


if __name__ == "__main__":
    main()

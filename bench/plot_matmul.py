"""Draw a capsule of `nibble bench kernels`: rows a second over rows, ours and MLX's.

    python -m bench.plot_matmul bench/capsules/matmul.json docs/images/matmul.svg

One panel a shape. Lines differ in marker and dash, so that they can be told apart
in black and white. Needs matplotlib (the `plot` extra).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

STYLES = {
    "mlx": dict(label="MLX", marker="s", linestyle="--", color="0.45"),
    "nibble": dict(label="mlx-nibble", marker="o", linestyle="-", color="#1f5fa8"),
}


def draw(capsule: dict, target: str) -> None:
    panels = defaultdict(list)
    for result in capsule["results"]:
        case = result["case"]
        panels[case["N"], case["K"]].append(result)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.4), squeeze=False, sharey=True
    )
    for axis, ((N, K), results) in zip(axes[0], panels.items(), strict=True):
        results.sort(key=lambda r: r["case"]["rows"])
        rows = [r["case"]["rows"] for r in results]
        for name, style in STYLES.items():
            speed, low, high = [], [], []
            for count, result in zip(rows, results, strict=True):
                taken = result["candidates"][name]["passes"]
                seconds = [s for one in taken for s in one]
                first, middle, third = statistics.quantiles(seconds, n=4)
                speed.append(count / middle)
                low.append(count / third)
                high.append(count / first)
            axis.plot(rows, speed, **style)
            axis.fill_between(rows, low, high, color=style["color"], alpha=0.2)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(rows, [str(r) for r in rows])
        axis.set_xlabel("rows of x")
        axis.set_title(f"{N} × {K}")
        axis.grid(alpha=0.3)
    case = capsule["results"][0]["case"]
    axes[0][0].set_ylabel("rows a second")
    axes[0][0].legend()
    figure.suptitle(
        f"{case['bits']}-bit quantized_matmul, group {case['group_size']}, "
        f"{case['dtype']}, {capsule['machine']['threads']} threads of a CPU",
        fontsize=10,
    )
    figure.tight_layout()
    # Reproducible: the same capsule gives the same bytes.
    plt.rcParams["svg.hashsalt"] = "mlx-nibble"
    figure.savefig(target, metadata={"Date": None})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plot_matmul")
    parser.add_argument("capsule")
    parser.add_argument("target", help="a .svg file")
    args = parser.parse_args(argv)
    with open(args.capsule) as f:
        draw(json.load(f), args.target)


if __name__ == "__main__":
    main()

"""Runs mlx-lm's commands in turns: as they are, and through `nibble run`.

    python -m bench.commands MODEL_FOLDER DENSE_FOLDER

Each command is a process of its own, on the same model, and states its own speed. The
first folder is quantized. The second is a small model in full precision, for the
commands that quantize. mlx-lm's calibration text and all data sets are Python's own
documentation. A command that fails says so in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mlx_nibble.cli.console import err, filled, out
from mlx_nibble.evaluation.calibration_text import read_text

ROUNDS = 2
PATIENCE = 600


@dataclass(frozen=True)
class Case:
    """A command: its arguments, the speed and the result in its output."""

    name: str
    arguments: tuple[str, ...]
    speed: str | None
    unit: str
    result: str | None = None


def cases(model: str, dense: str, work: Path) -> list[Case]:
    data, prompt = str(work), "The hen " * 30
    adapter = ("--adapter-path", "{out}-adapter")
    train = ("--train", "--test", "--data", data, "--iters", "4", "--batch-size", "1")
    train += ("--steps-per-report", "2", "--val-batches", "1", "--num-layers", "4")
    train += ("--max-seq-length", "128", "--test-batches", "1")
    few = ("--num-samples", "2", "--sequence-length", "64")
    made = ("--mlx-path", "{out}")
    return [
        Case(
            "generate",
            ("--model", model, "--prompt", prompt, "-m", "16"),
            r"Generation: .* ([\d.]+) tokens-per-sec",
            "tokens/s",
        ),
        Case(
            "benchmark",
            ("--model", model, "-p", "64", "-g", "16", "-n", "1", "-b", "4"),
            r"generation_tps=([\d.]+)",
            "tokens/s",
        ),
        Case(
            "cache_prompt",
            ("--model", model, "--prompt", prompt, "--prompt-cache-file", "{out}.c"),
            r"\(\s*([\d.]+) tok/s\)",
            "tokens/s",
        ),
        Case(
            "perplexity",
            ("--model", model, "--data-path", data, "--sequence-length", "128")
            + ("--num-samples", "2", "--batch-size", "2"),
            r"Tokens per second: ([\d.]+)",
            "tokens/s",
            r"Perplexity: ([\d.]+)",
        ),
        Case(
            "lora",
            ("--model", model, *adapter, *train),
            r"^\s+4\s+[\d.]+ \S\s+([\d,]+)",
            "tokens/s",
            r"Test loss ([\d.]+)",
        ),
        Case("fuse", ("--model", model, *adapter, "--save-path", "{out}"), None, "s"),
        Case(
            "dwq",
            ("--model", dense, "--data-path", data, "--num-samples", "8", *made)
            + ("--max-seq-length", "65", "--batch-size", "1"),
            None,
            "s",
        ),
        Case("awq", ("--model", dense, *few, "--n-grid", "4", *made), None, "s"),
        Case("gptq", ("--model", dense, *few, *made), None, "s"),
        Case("dynamic_quant", ("--model", dense, *made), None, "s"),
    ]


def run(case: Case, ours: bool, out_path: Path, home: Path) -> tuple[float, str | None]:
    """Return the speed that a command states, or its seconds; and its result."""
    program = ["mlx_nibble", "run"] if ours else ["mlx_lm"]
    arguments = [a.replace("{out}", str(out_path)) for a in case.arguments]
    command = [sys.executable, "-m", program[0], *program[1:], case.name, *arguments]
    start = time.perf_counter()
    environment = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=environment
    )
    taken = time.perf_counter() - start
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1][:200])
    text = re.sub(r"\x1b\[[\d;]*m", "", ended.stdout)
    found = re.findall(case.result, text) if case.result else []
    if case.speed is None:
        return taken, None
    speeds = re.findall(case.speed, text, re.M)
    return float(speeds[-1].replace(",", "")), found[-1] if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("dense")
    parser.add_argument("--only", nargs="+", help="names of commands")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work, home = Path(folder, "data"), Path(folder, "home")
        write_data(work, home)
        for case in cases(args.model, args.dense, work):
            if args.only is None or case.name in args.only:
                rows.append(row(case, Path(folder), home))
                err.print(" | ".join(rows[-1]))
    header = ["command", "mlx-lm", "nibble run", "ratio", "result, both"]
    out.print(filled(header, rows))


def write_data(work: Path, home: Path) -> None:
    """Write data sets, and the text that mlx-lm calibrates on, if it is there."""
    text = read_text("builtin")
    work.mkdir()
    lines = [json.dumps({"text": text[i : i + 1500]}) for i in range(0, 90_000, 1500)]
    for part in ("train", "valid", "test"):
        (work / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    calibration = home / ".cache" / "mlx-lm" / "calibration_v5.txt"
    calibration.parent.mkdir(parents=True)
    calibration.write_text(text[:40_000])


def row(case: Case, folder: Path, home: Path) -> list[str]:
    """Return a row of the table; the two take turns."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    results: dict[bool, str | None] = {}
    for turn in range(ROUNDS):
        for ours in (False, True):
            path = folder / f"{'ours' if ours else 'stock'}-{case.name}-{turn}"
            if case.name == "fuse":  # of the adapter that lora has made
                adapter = folder / f"{'ours' if ours else 'stock'}-lora-0-adapter"
                path.with_name(f"{path.name}-adapter").symlink_to(adapter)
            try:
                speed, results[ours] = run(case, ours, path, home)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                side = "nibble run" if ours else "mlx-lm"
                return [case.name, f"{side} fails: {error}", "", "", ""]
            speeds[ours].append(speed)
    stock, our = (statistics.median(speeds[ours]) for ours in (False, True))
    ratio = stock / our if case.unit == "s" else our / stock
    texts = [f"{value:.3g} {case.unit}" for value in (stock, our)]
    both = " and ".join(dict.fromkeys(str(r) for r in results.values() if r))
    return [case.name, *texts, f"{ratio:.2f}×", both]


if __name__ == "__main__":
    main()

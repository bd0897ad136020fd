"""Runs mlx-lm's commands in turns: as they are, and through `nibble run`.

    python -m bench.commands MODEL_FOLDER DENSE_FOLDER

Each command is a process of its own, on the same model. The figure is its CPU time on
one thread, less that of its start: other programs hardly disturb it. The first
folder is quantized. The second is a small model in full precision, for the
commands that quantize. mlx-lm's calibration text and all data sets are Python's own
documentation. A command that fails says so in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlx_nibble.cli.console import err, filled, out
from mlx_nibble.evaluation.calibration_text import read_text

ROUNDS = 1
PATIENCE = 600
LEAST = 0.5


@dataclass(frozen=True)
class Case:
    """A command: its arguments, and the result in its output."""

    name: str
    arguments: tuple[str, ...]
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
            "perplexity",
            ("--model", model, "--data-path", data, "--sequence-length", "128")
            + ("--num-samples", "4", "--batch-size", "2"),
            r"Perplexity: ([\d.]+)",
        ),
        Case("lora", ("--model", model, *adapter, *train), r"Test loss ([\d.]+)"),
        Case("fuse", ("--model", model, *adapter, "--save-path", "{out}")),
        Case("generate", ("--model", model, "--prompt", prompt, "-m", "64")),
        Case(
            "benchmark",
            ("--model", model, "-p", "64", "-g", "16", "-b", "2", "-n", "1"),
        ),
        Case(
            "cache_prompt",
            ("--model", model, "--prompt", prompt, "--prompt-cache-file", "{out}.c"),
        ),
        Case(
            "dwq",
            ("--model", dense, "--data-path", data, "--num-samples", "4", *made)
            + ("--max-seq-length", "65", "--batch-size", "1"),
        ),
        Case("awq", ("--model", dense, *few, "--n-grid", "4", *made)),
        Case("gptq", ("--model", dense, *few, *made)),
        Case("dynamic_quant", ("--model", dense, *made)),
    ]


def cpu_seconds() -> float:
    """Return the CPU time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(ours: bool, arguments: list[str], home: Path) -> tuple[float, str]:
    """Return a command's CPU time, and its output."""
    program = ["mlx_nibble", "run"] if ours else ["mlx_lm"]
    command = [sys.executable, "-m", program[0], *program[1:], *arguments]
    environment = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment |= {"NIBBLE_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    before = cpu_seconds()
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=environment
    )
    taken = cpu_seconds() - before
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1][:200])
    return taken, ended.stdout


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
        start = {
            ours: run(ours, ["generate", "--help"], home)[0] for ours in (False, True)
        }
        for case in cases(args.model, args.dense, work):
            if args.only is None or case.name in args.only:
                rows.append(row(case, Path(folder), home, start))
                err.print(" | ".join(rows[-1]))
    header = ["command", "mlx-lm", "nibble run", "ratio", "result"]
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


def row(case: Case, folder: Path, home: Path, start: dict[bool, float]) -> list[str]:
    """Return a row of the table; the two take turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    results = set()
    for turn in range(ROUNDS):
        for ours in (False, True):
            side = "ours" if ours else "stock"
            path = folder / f"{side}-{case.name}-{turn}"
            if case.name == "fuse":  # of the adapter that lora has made
                adapter = folder / f"{side}-lora-0-adapter"
                path.with_name(f"{path.name}-adapter").symlink_to(adapter)
            arguments = [a.replace("{out}", str(path)) for a in case.arguments]
            try:
                taken, text = run(ours, [case.name, *arguments], home)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                return [case.name, f"{side} fails: {error}", "", "", ""]
            times[ours].append(max(taken - start[ours], 0.0))
            results |= set(re.findall(case.result, text)[-1:]) if case.result else set()
    stock, our = (statistics.median(times[ours]) for ours in (False, True))
    seconds = [f"{value:.1f} s" for value in (stock, our)]
    # The start alone varies by as much.
    ratio = f"{stock / our:.1f}×" if min(stock, our) > LEAST else ""
    return [case.name, *seconds, ratio, " and ".join(sorted(results))]


if __name__ == "__main__":
    main()

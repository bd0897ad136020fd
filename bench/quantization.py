"""Measures the loss of quantizing SmolLM2: ours beside mlx-lm's own commands.

    python -m bench.quantization FOLDER [ROW...]

FOLDER holds the float16 model `smol` and the texts `moby.txt` and `sotu.txt`;
docs/results/quantization.md tells how they are made. A row without a folder is
converted first; an evaluated row is not evaluated again. Results go to
bench/capsules/quantization.json, and from there into docs/results/quantization.md;
bench.redraw draws them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.evaluation.calibration_text import batches, read_text
from mlx_nibble.evaluation.evaluate import evaluate
from mlx_nibble.evaluation.inventory import read_inventory
from mlx_nibble.layerwise.cpu_math import fast_dense
from mlx_nibble.lm import load_for_evaluation

ROOT = Path(__file__).parents[1]
CAPSULE = ROOT / "bench" / "capsules" / "quantization.json"
DOCUMENT = ROOT / "docs" / "results" / "quantization.md"
BEGIN = "<!-- measured: python -m bench.quantization -->"
END = "<!-- /measured -->"
TEXTS = {"State of the Union": "sotu.txt", "Python docs": "builtin"}
SAMPLES, LENGTH = 4, 512


@dataclass(frozen=True)
class Conversion:
    """A row of the table, and the command that makes its folder."""

    label: str
    command: str


_OURS = "nibble convert smol {name} -q --calibration moby.txt --samples 32"
_PEER = (
    "python -m bench.mlx_lm_quantize moby.txt {kind} --model smol --mlx-path {{name}} "
    "--bits 4 --group-size 64 --sequence-length 512"
)
ROWS = {
    "mlx": Conversion(
        "`mlx_lm.convert -q`", "mlx_lm.convert --hf-path smol -q --mlx-path {name}"
    ),
    "mlx-gptq": Conversion(
        "`mlx_lm.gptq`",
        _PEER.format(kind="gptq") + " --num-samples 16 --fallback-bits 4",
    ),
    "mlx-awq": Conversion(
        "`mlx_lm.awq`",
        _PEER.format(kind="awq") + " --num-samples 8 --embed-group-size 64",
    ),
    "mlx-dwq": Conversion(
        "`mlx_lm.dwq`",
        _PEER.format(kind="dwq").replace("--sequence-length", "--max-seq-length")
        + " --num-samples 128 --batch-size 1",
    ),
    "mlx-dynamic": Conversion(
        "`mlx_lm.dynamic_quant`, 5 bits",
        "python -m bench.mlx_lm_quantize moby.txt dynamic_quant --samples 8 "
        "--model smol --mlx-path {name} --target-bpw 5",
    ),
    "awq": Conversion("ours, `--method awq`", f"{_OURS} --method awq"),
    "awq-gptq": Conversion("ours, `--method awq+gptq`", f"{_OURS} --method awq+gptq"),
    "g64": Conversion("ours", _OURS),
    "g64-64": Conversion("ours, 64 samples", _OURS.replace("32", "64")),
    "g32": Conversion("ours, groups of 32", f"{_OURS} --q-group-size 32"),
    "mix5": Conversion("ours, `--target-bpw 5`", f"{_OURS} --target-bpw 5"),
    "distill": Conversion(
        "ours, `--distill`", f"{_OURS} --distill".replace("32", "256")
    ),
    "distill5": Conversion(
        "ours, `--target-bpw 5 --distill`",
        f"{_OURS} --target-bpw 5 --distill".replace("32", "256"),
    ),
    "b8": Conversion("ours, 8 bits", f"{_OURS} --q-bits 8"),
}


def make(folder: Path, name: str) -> dict[str, Any]:
    """Run a row's command; return its time and memory."""
    command = ROWS[name].command.format(name=name)
    program, *rest = shlex.split(command)
    binary = str(Path(sys.executable).with_name(program))
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        paths = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        os.execve(binary, [program, *rest], {**os.environ, "PYTHONPATH": paths})
    _, status, used = os.wait4(process, 0)
    if status != 0:
        raise SystemExit(f"[bench] {command} failed")
    return {
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
    }


def measure(folder: Path, names: list[str], results: dict[str, Any]) -> None:
    """Evaluate rows on both texts; compute the reference's logits once."""
    for label, source in TEXTS.items():
        missing = [n for n in names if label not in results[n]]
        if not missing:
            continue
        path = str(folder / source)
        text = read_text(path if source.endswith(".txt") else source)
        with _reference(folder, text) as (tokens, reference):
            for name in missing:
                model, _ = load_for_evaluation(str(folder / name))
                results[name][label] = asdict(evaluate(model, tokens, reference))
                write(results)


@contextmanager
def _reference(
    folder: Path, text: str
) -> Iterator[tuple[list[mx.array], Callable[[mx.array], mx.array]]]:
    model, tokenizer = load_for_evaluation(str(folder / "smol"))
    tokens = batches(tokenizer.encode(text), LENGTH, SAMPLES)
    with fast_dense():
        logits = {id(batch): mx.array(np.array(model(batch))) for batch in tokens}
    yield tokens, lambda batch: logits[id(batch)]


def write(results: dict[str, Any]) -> None:
    ordered = {name: results[name] for name in ROWS if name in results}
    CAPSULE.write_text(json.dumps(ordered, indent=1) + "\n")


def table(results: dict[str, Any]) -> str:
    lines = [
        "| | bits a weight | State of the Union | KL | Python docs | KL |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    reference = next(iter(results.values()))
    perplexities = [reference[t]["reference_perplexity"]["mean"] for t in TEXTS]
    lines.append("| float16 | 16 | {:.2f} | | {:.2f} | |".format(*perplexities))
    for name, result in results.items():
        cells = [ROWS[name].label, f"{result['bits_per_weight']:.3f}"]
        for text in TEXTS:
            comparison = result[text]["comparison"]
            growth, kl = comparison["increase"], comparison["kl"]
            digits = 2 if kl["mean"] < 0.01 else 1
            mean, error = 100 * growth["mean"], 100 * growth["error"]
            cells.append(f"{mean:+.{digits}f} % ± {error:.{digits}f}")
            cells.append(f"{kl['mean']:.{digits + 2}f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def document(text: str, results: dict[str, Any]) -> str:
    """Return the document with a new table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    commands = [f"    {ROWS[n].command.format(name=n)}" for n in ROWS if n in results]
    made = "\n".join(commands)
    return f"{before}{BEGIN}\n{table(results)}\n\n{made}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS])
    args = parser.parse_args()
    names = args.rows or list(ROWS)
    results = json.loads(CAPSULE.read_text()) if CAPSULE.exists() else {}
    for name in names:
        if not (args.folder / name).exists():
            results[name] = make(args.folder, name)
        bits = read_inventory(args.folder / name).bits_per_weight
        results.setdefault(name, {})["bits_per_weight"] = bits
    measure(args.folder, names, results)
    results = json.loads(CAPSULE.read_text())
    DOCUMENT.write_text(document(DOCUMENT.read_text(), results))


if __name__ == "__main__":
    main()

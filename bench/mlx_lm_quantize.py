"""Runs mlx-lm's own quantizer commands on our calibration text, in float32.

    python -m bench.mlx_lm_quantize TEXT gptq --model smol --mlx-path out ...
    python -m bench.mlx_lm_quantize TEXT awq --model smol --mlx-path out ...
    python -m bench.mlx_lm_quantize TEXT dwq --model smol --mlx-path out ...
    python -m bench.mlx_lm_quantize TEXT dynamic_quant --samples 8 --model smol ...

The arguments after the command's name are its own command line, but for `--samples`:
the sequences that `mlx_lm.dynamic_quant` reads, which takes all of a text. Three points
differ from these commands on a Mac. None of them changes the result:

- TEXT replaces the calibration text that they would download, so that all rows of a
  table use the same one.
- The model computes in float32, and is written in its own type: MLX's CPU operations in
  float16 are 40 times slower.
- `mx.quantized_matmul` is ours, exact in float32: AWQ compares the quantized blocks
  with it, DWQ trains through it, and MLX's runs on one thread.

DWQ trains in float32, too, where mlx-lm computes in bfloat16. Its sequences are spread
evenly over the text.

MLX's Linux wheel brings the reference BLAS. With Debian's libopenblas0-pthread in
LD_PRELOAD the dense products are 15 times as fast.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble import ops
from mlx_nibble.evaluation.calibration_text import batches, encode, read_text

COMMANDS = ("gptq", "awq", "dwq", "dynamic_quant")
HELD_OUT = 4  # sequences of DWQ's own measurements


def sequences(
    text: Path, tokenizer: Any, path: str, num_samples: int, max_seq_length: int
) -> tuple[list, list]:
    """Return DWQ's training and validation data: sequences of our text."""
    ids = encode(tokenizer, read_text(str(text)))
    found = batches(ids, max_seq_length, num_samples + HELD_OUT)
    rows = [(batch[0].tolist(), 0) for batch in found]
    step = len(rows) // HELD_OUT
    kept = set(range(step // 2, len(rows), step))
    return (
        [row for i, row in enumerate(rows) if i not in kept],
        [row for i, row in enumerate(rows) if i in kept],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--samples", type=int, default=-1)
    args, rest = parser.parse_known_args()
    command = importlib.import_module(f"mlx_lm.quant.{args.command}")
    load, save = command.load, command.save

    def load_float32(*a: Any, **k: Any) -> Any:
        model, *others = load(*a, **k)
        model.set_dtype(mx.float32)
        return (model, *others)

    def save_float16(path: str, source: str, model: Any, *a: Any) -> None:
        model.set_dtype(mx.float16)
        save(path, source, model, *a)

    command.load, command.save = load_float32, save_float16
    if args.command == "dwq":
        command.load_data = partial(sequences, args.text)
        command.dwq_quantize = partial(command.dwq_quantize, dtype=mx.float32)
    if args.command == "dynamic_quant":
        load_data = command.load_data
        command.load_data = lambda tokenizer, num_samples, sequence_length: load_data(
            tokenizer, args.samples, sequence_length
        )
    mx.quantized_matmul = ops.quantized_matmul
    with tempfile.TemporaryDirectory() as home:
        cache = Path(home) / ".cache" / "mlx-lm"
        cache.mkdir(parents=True)
        (cache / "calibration_v5.txt").write_bytes(args.text.read_bytes())
        os.environ["HOME"] = home
        sys.argv = [f"mlx_lm.{args.command}", *rest]
        command.main()


if __name__ == "__main__":
    main()

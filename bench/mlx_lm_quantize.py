"""Runs mlx-lm's own quantizer commands on our calibration text, in float32.

    python -m bench.mlx_lm_quantize TEXT gptq --model smol --mlx-path out ...
    python -m bench.mlx_lm_quantize TEXT awq --model smol --mlx-path out ...

The arguments after the command's name are its own command line. Three points differ
from `mlx_lm.gptq` and `mlx_lm.awq` on a Mac. None of them changes the result:

- TEXT replaces the calibration text that they would download, so that all rows of a
  table use the same one.
- The model computes in float32, and is written in its own type: MLX's CPU operations in
  float16 are 40 times slower.
- `mx.quantized_matmul` is ours, exact in float32: AWQ compares the quantized blocks
  with it, and MLX's runs on one thread.

MLX's Linux wheel brings the reference BLAS. With Debian's libopenblas0-pthread in
LD_PRELOAD the dense products are 15 times as fast.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble import ops


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("command", choices=("gptq", "awq"))
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

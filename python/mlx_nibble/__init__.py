"""Low-bit matrix multiplication for MLX.

    import mlx_nibble
    from mlx_lm import load, generate

    model, tokenizer = load("mlx-community/Llama-3.2-3B-Instruct-4bit")
    print(mlx_nibble.accelerate(model))
    generate(model, tokenizer, prompt="Hello")

Most programs need only :func:`accelerate`. :mod:`mlx_nibble.ops` has the quantized
operations, :mod:`mlx_nibble.fast` the operations between them, :mod:`mlx_nibble.nn` the
layers, and :mod:`mlx_nibble.lm` functions for mlx-lm.
"""

from __future__ import annotations

from mlx_nibble import _interpreter as _interpreter  # before MLX, which would hang
from mlx_nibble import _native, fast, nn, ops
from mlx_nibble._version import __version__
from mlx_nibble.acceleration.accelerate import accelerate
from mlx_nibble.acceleration.report import Report
from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.machine import verdicts

if _native.ext is not None:
    verdicts.install(_native.ext)

__all__ = [
    "Report",
    "Settings",
    "__version__",
    "accelerate",
    "fast",
    "nn",
    "ops",
]

"""What MLX's CUDA backend does not compute, so that it raises."""

from __future__ import annotations

import mlx.core as mx

# For shapes, types and widths without a kernel, and for transformations.
MESSAGES = (
    "No implementation for",
    "-bit quantization is not supported",
    "::vmap] NYI",
    "::vmap NYI",
    "::jvp NYI",
    # Dense products stand for those without a kernel.
    "Not implemented for GatherMM",
    "Not implemented for FromFP8",
)


def is_missing(error: BaseException) -> bool:
    """Return whether an operation failed only because MLX lacks it for CUDA."""
    if parts := getattr(error, "exceptions", None):  # a group, of hypothesis
        return all(map(is_missing, parts))
    return mx.cuda.is_available() and any(m in str(error) for m in MESSAGES)

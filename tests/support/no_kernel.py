"""Products for which MLX's CUDA backend has no kernel."""

from __future__ import annotations

import mlx.core as mx


def is_missing(error: Exception) -> bool:
    """Return whether an operation of MLX failed for want of a kernel for CUDA."""
    return mx.cuda.is_available() and "No implementation for" in str(error)

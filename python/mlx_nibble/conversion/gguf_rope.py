"""The scaling of rotary embeddings: llama.cpp's metadata and tensors as mlx-lm's keys.

llama.cpp stores factors of the frequencies as tensors: `rope_freqs` of Llama 3, and
`rope_factors_long` and `rope_factors_short` of Phi 3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlx_nibble.conversion.gguf_metadata import Metadata
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.tensors import read_values

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192
# The factors are float32; their formula is evaluated in float32, in another order.
_TOLERANCE = 1e-5


def rope_scaling(
    metadata: Metadata, supported: tuple[str, ...], base: float, rotated: int
) -> dict[str, Any] | None:
    """Return mlx-lm's `rope_scaling`, as llama.cpp reads it.

    A factor without a type is linear. `rope.scale_linear` is the older name.

    Args:
        metadata: The metadata of the model.
        supported: Types that mlx-lm's model computes.
        base: The base of the frequencies.
        rotated: Sizes of a head that are rotated.

    Raises:
        ValueError: If the type is not supported, or a factor is no number.
    """
    kind = metadata.get("rope.scaling.type", str, "linear")
    older = metadata.get("rope.scale_linear", float, 0.0)
    factor = metadata.get("rope.scaling.factor", float, older)
    tensors = metadata.file.tensors
    scaling = None
    if LONG in tensors:
        scaling = _longrope(metadata, rotated)
    elif FREQUENCIES in tensors:
        if factor not in (0.0, 1.0) and kind != "none":
            fail(f"one scaling of rope is required but {FREQUENCIES!r} is a second.")
        scaling = _by_tensor(metadata, base, rotated)
    elif kind not in ("none", "linear", "yarn"):
        fail(f"rope scaling must be 'none', 'linear' or 'yarn' but is {kind!r}.")
    elif kind != "none" and factor not in (0.0, 1.0):
        if not 0 < factor < float("inf"):
            fail(f"the factor of rope scaling must be positive but is {factor}.")
        scaling = {"type": kind, "rope_type": kind, "factor": factor}
        if kind == "yarn":
            scaling |= _yarn(metadata)
    if scaling is not None and scaling["type"] not in supported:
        fail(
            f"mlx-lm's model must support rope scaling {scaling['type']!r} but "
            f"supports {', '.join(supported) or 'none'}."
        )
    return scaling


def _yarn(metadata: Metadata) -> dict[str, Any]:
    keys = {
        "original_max_position_embeddings": metadata.size(
            "rope.scaling.original_context_length"
        ),
        "beta_fast": metadata.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": metadata.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    return keys


def _by_tensor(metadata: Metadata, base: float, rotated: int) -> dict[str, Any]:
    """Return Llama 3's scaling if it explains the factors; the factors otherwise."""
    factors = _factors(metadata, FREQUENCIES, rotated)
    original = metadata.size("rope.scaling.original_context_length", _LLAMA3_CONTEXT)
    factor = float(str(factors.max()))
    expected = _llama3_factors(base, rotated, factor, original)
    if np.allclose(factors, expected, rtol=_TOLERANCE, atol=0):
        named = {"type": "llama3", "rope_type": "llama3", "factor": factor}
        return named | _LLAMA3 | {"original_max_position_embeddings": original}
    # This type scales the activations if the context is longer than the original.
    context = metadata.size("context_length")
    return {
        "type": "longrope",
        "rope_type": "longrope",
        "short_factor": factors.tolist(),
        "long_factor": factors.tolist(),
        "original_max_position_embeddings": context,
    }


def _llama3_factors(
    base: float, rotated: int, factor: float, original: int
) -> np.ndarray:
    low, high = _LLAMA3.values()
    lengths = 2 * math.pi * base ** (np.arange(0, rotated, 2) / rotated)
    smooth = (original / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    ends = np.where(lengths > original / low, factor, between)
    return np.where(lengths < original / high, 1.0, ends)


def _longrope(metadata: Metadata, rotated: int) -> dict[str, Any]:
    context = metadata.size("context_length")
    original = metadata.size("rope.scaling.original_context_length", context)
    scale = max(context / original, 1.0)
    stated = metadata.get("rope.scaling.attn_factor", float, 1.0)
    ours = math.sqrt(1 + math.log(scale) / math.log(max(original, 2)))
    if abs(stated - ours) > _TOLERANCE * ours:
        fail(
            f"{metadata.architecture}.rope.scaling.attn_factor must be {ours:.6g}, as "
            f"mlx-lm's model computes it, but is {stated:.6g}."
        )
    return {
        "type": "longrope",
        "rope_type": "longrope",
        "short_factor": _factors(metadata, SHORT, rotated).tolist(),
        "long_factor": _factors(metadata, LONG, rotated).tolist(),
        "original_max_position_embeddings": original,
    }


def _factors(metadata: Metadata, name: str, rotated: int) -> np.ndarray:
    if name not in metadata.file.tensors:
        fail(f"tensor {name!r} is required but is missing.")
    if metadata.file.tensors[name].shape != (rotated // 2,):
        shape = metadata.file.tensors[name].shape
        fail(f"tensor {name!r} must have shape {(rotated // 2,)} but has {shape}.")
    factors = read_values(metadata.file, name)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        fail(f"tensor {name!r} must be positive and finite but is not.")
    return factors

"""How much memory a model takes, and would take in other formats.

Weights are counted, not estimated: from the shapes and types of the parameters,
none of which is read. The KV cache is mlx-lm's, for layers of full attention.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# mlx-lm's KVCache grows by so many tokens; its prompts are cut into steps.
CACHE_STEP = 256
PROMPT_STEP = 2048

# What macOS lets the GPU use of 8, 16, 32 and 64 GB by default: two thirds, and
# from 64 GB on three quarters. As reported by others; it was not measured here.
GPU_SHARE = {8: 2 / 3, 16: 2 / 3, 32: 2 / 3, 64: 3 / 4}
GIB = 1 << 30


@dataclass(frozen=True)
class Part:
    """One module's parameters.

    Attributes:
        path: Of the module in the model.
        shape: Of its matrix, ``[..., N, K]``; of a vector, ``[N]``.
        bits: Of a stored value: a code's, or a plain type's.
        group_size: Of a quantized matrix; None if it is not quantized.
        value_bytes: Codes, or plain values.
        scale_bytes: Scales and biases of the groups.
        is_matrix: Whether quantizing a model would quantize it.
    """

    path: str
    shape: tuple[int, ...]
    bits: int
    group_size: int | None
    value_bytes: int
    scale_bytes: int
    is_matrix: bool

    @property
    def weights(self) -> int:
        """How many values the module stands for."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """All of the part's bytes."""
        return self.value_bytes + self.scale_bytes


def parts(model: nn.Module) -> list[Part]:
    """Every parameter of a model, by module; nothing is evaluated."""
    found = []
    for path, module in model.named_modules():
        arrays = {
            name: value
            for name, value in module.items()
            if isinstance(value, mx.array) and not name.startswith("_")
        }
        if "weight" in arrays and "scales" in arrays:
            found.append(_quantized(path, module, arrays))
            arrays = {"bias": arrays["bias"]} if "bias" in arrays else {}
        for name, array in arrays.items():
            is_matrix = name == "weight" and hasattr(module, "to_quantized")
            found.append(_plain(path, name, array, is_matrix))
    return sorted(found, key=_natural_order)


def _natural_order(part: Part) -> list[tuple[int, str]]:
    """Layer 10 comes after layer 9."""
    words = part.path.split(".")
    return [(int(word) if word.isdigit() else -1, word) for word in words]


def _quantized(path: str, module: Any, arrays: dict[str, mx.array]) -> Part:
    words = arrays["weight"]
    columns = words.shape[-1] * 32 // module.bits
    scale_bytes = sum(
        arrays[name].nbytes for name in ("scales", "biases") if name in arrays
    )
    return Part(
        path=path,
        shape=(*words.shape[:-1], columns),
        bits=module.bits,
        group_size=module.group_size,
        value_bytes=words.nbytes,
        scale_bytes=scale_bytes,
        is_matrix=True,
    )


def _plain(path: str, name: str, array: mx.array, is_matrix: bool) -> Part:
    return Part(
        path=path if name == "weight" else f"{path}.{name}",
        shape=tuple(array.shape),
        bits=array.dtype.size * 8,
        group_size=None,
        value_bytes=array.nbytes,
        scale_bytes=0,
        is_matrix=is_matrix,
    )


def requantized(
    part: Part, bits: int, group_size: int | None, scale_bits: int = 16
) -> Part:
    """The part in another format; as it is if MLX would not quantize it.

    Args:
        part: Any part of a model.
        bits: Of a code, or of a plain type if ``group_size`` is None.
        group_size: Values that share a scale and a bias.
        scale_bits: Of each scale and each bias.
    """
    if not part.is_matrix or not divides(part, group_size):
        return part
    scales = 2 * part.weights // group_size if group_size else 0
    return Part(
        path=part.path,
        shape=part.shape,
        bits=bits,
        group_size=group_size,
        value_bytes=part.weights * bits // 8,
        scale_bytes=scales * scale_bits // 8,
        is_matrix=True,
    )


def divides(part: Part, group_size: int | None) -> bool:
    """Whether the part's rows consist of whole groups."""
    return group_size is None or part.shape[-1] % group_size == 0


def total_bytes(found: Iterable[Part]) -> int:
    """Bytes of all parts."""
    return sum(part.nbytes for part in found)


def bits_per_weight(found: Iterable[Part]) -> float:
    """With scales and biases counted."""
    found = list(found)
    return 8 * total_bytes(found) / sum(part.weights for part in found)


def cache_bytes(config: dict[str, Any], context: int, value_bytes: int) -> int | None:
    """Keys and values of a prompt of ``context`` tokens, as mlx-lm allocates them.

    Args:
        config: The model's ``config.json``.
        context: Tokens.
        value_bytes: Size of an activation.

    Returns:
        Bytes; None if the configuration does not say how many heads are cached.
    """
    config = config.get("text_config", config)
    layers = config.get("num_hidden_layers")
    heads = config.get("num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    if not layers or not heads or not kv_heads or "kv_lora_rank" in config:
        return None
    size = config.get("head_dim") or config["hidden_size"] // heads
    tokens = -(-context // CACHE_STEP) * CACHE_STEP
    return 2 * layers * kv_heads * size * tokens * value_bytes


def activation_bytes(
    config: dict[str, Any], context: int, value_bytes: int
) -> int | None:
    """About what one prompt step needs at its widest: inside the MLP.

    There the residual, its norm, gate, up and their product are alive at once.
    """
    config = config.get("text_config", config)
    hidden, ffn = config.get("hidden_size"), config.get("intermediate_size")
    if not hidden or not ffn:
        return None
    return min(context, PROMPT_STEP) * (2 * hidden + 3 * ffn) * value_bytes


def smallest_mac(nbytes: int) -> int | None:
    """The least memory, GB, whose default GPU share holds ``nbytes``."""
    for size, share in GPU_SHARE.items():
        if nbytes <= size * GIB * share:
            return size
    return None

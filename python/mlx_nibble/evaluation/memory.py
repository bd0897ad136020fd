"""The bytes that a model needs, counted from shapes before the model is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_nibble.formats import MODES, Format

# A process may wire about three quarters of a Mac's unified memory for the GPU
# (Metal's recommendedMaxWorkingSetSize on machines of 16 GB and up).
USABLE_SHARE = 0.75
SIZES_GB = (8, 16, 32, 64)
_HALF = 2
_LAYER = re.compile(r".*?\.\d+(?=\.)")


@dataclass(frozen=True)
class MatrixBytes:
    """One matrix or plain tensor.

    Attributes:
        path: Path in the model.
        shape: Shape of the dequantized weights.
        weights: Bytes of the codes, or of the plain values.
        scales: Bytes of the scales.
        biases: Bytes of the biases (the format's, not the layer's).
        label: The format in words.
        bits: Width of a code; None for a plain tensor.
    """

    path: str
    shape: tuple[int, ...]
    weights: int
    scales: int = 0
    biases: int = 0
    label: str = "plain"
    bits: int | None = None

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.weights + self.scales + self.biases


@dataclass(frozen=True)
class Inventory:
    """A model's tensors, and the memory that running it adds.

    Attributes:
        rows: All matrices and tensors.
        kv_bytes_per_token: Bytes of the KV cache for a token, in the checkpoint's type.
        activation_bytes: Largest pair of activations of a prefill step of 2048
            tokens (mlx-lm's), in half precision: an estimate.
    """

    rows: tuple[MatrixBytes, ...]
    kv_bytes_per_token: int
    activation_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(row.nbytes for row in self.rows)

    @property
    def parameters(self) -> int:
        """Number of the model's weights."""
        return sum(row.parameters for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, with scales and biases counted."""
        return 8 * self.nbytes / max(self.parameters, 1)

    def total(self, context: int) -> int:
        """Return the bytes to run a sequence of `context` tokens."""
        return self.nbytes + context * self.kv_bytes_per_token + self.activation_bytes

    def fits(self, context: int, memory_gb: int) -> bool:
        """Tell whether the model runs on a Mac with `memory_gb`."""
        return self.total(context) <= USABLE_SHARE * memory_gb * 2**30


def by_layer(inventory: Inventory) -> dict[str, list[MatrixBytes]]:
    """Group the tensors by decoder layer; a tensor outside is a group of its own."""
    layers: dict[str, list[MatrixBytes]] = {}
    for row in inventory.rows:
        found = _LAYER.match(row.path)
        layers.setdefault(found[0] if found else row.path, []).append(row)
    return layers


def label(bits: int, group_size: int, mode: str = "affine") -> str:
    """Return a format in words. A mode of floats has one width and group size."""
    return f"{bits}-bit g{group_size}" if MODES[mode].stores_biases else mode


def stored(path: str, shape: tuple[int, ...], form: Format) -> MatrixBytes:
    """Return the bytes of a matrix in a format."""
    count = math.prod(shape)
    codes = count * form.bits // 8
    biased = MODES[form.mode].stores_biases
    each = (form.nbytes(count // shape[-1], shape[-1]) - codes) // (1 + biased)
    name = label(form.bits, form.group_size, form.mode)
    return MatrixBytes(path, shape, codes, each, biased * each, name, form.bits)


def what_if(inventory: Inventory, plan: Mapping[str, Format]) -> Inventory:
    """Return the inventory with the planned formats."""
    rows = tuple(
        stored(row.path, row.shape, plan[row.path]) if row.path in plan else row
        for row in inventory.rows
    )
    return Inventory(rows, inventory.kv_bytes_per_token, inventory.activation_bytes)


def kv_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Return the bytes of keys and values that one token adds.

    They have the checkpoint's type: 16 bits, unless it says float32.

    Args:
        config: A model's `config.json`. Without the sizes the result is 0.
    """
    text = {**config, **config.get("text_config", {})}
    try:
        heads = int(text["num_attention_heads"])
        width = int(text.get("head_dim") or text["hidden_size"] // heads)
        kv_heads = int(text.get("num_key_value_heads") or heads)
        stated = text.get("dtype") or text.get("torch_dtype")
        size = 2 * _HALF if stated == "float32" else _HALF
        return 2 * int(text["num_hidden_layers"]) * kv_heads * width * size
    except (KeyError, TypeError):  # absent, null, or a list with a size for each layer
        return 0


def activation_bytes(config: Mapping[str, Any], prefill: int = 2048) -> int:
    """Return the bytes of a prefill step's two largest activations, those of the MLP.

    Args:
        config: A model's `config.json`. Without the sizes the result is 0.
        prefill: Tokens of a step.
    """
    text = {**config, **config.get("text_config", {})}
    try:
        hidden = int(text["hidden_size"])
        inner = int(text.get("intermediate_size") or 4 * hidden)
    except (KeyError, TypeError):
        return 0
    return prefill * (2 * inner + 2 * hidden) * _HALF

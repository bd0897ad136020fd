"""The bytes a model takes: counted from its shapes, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_nibble.formats import Format

# Of a Mac's unified memory a process may wire about three quarters for the GPU
# (Metal's recommendedMaxWorkingSetSize on machines of 16 GB and up).
USABLE_SHARE = 0.75
SIZES_GB = (8, 16, 32, 64)
_HALF = 2
_REPACKED_FORMATS = ("2-bit ", "4-bit ", "8-bit ")
_LAYER = re.compile(r".*?\.\d+(?=\.)")


@dataclass(frozen=True)
class MatrixBytes:
    """One matrix or plain tensor.

    Attributes:
        path: Its path in the model.
        shape: Of the weights it stands for.
        weights: Bytes of the codes, or of the plain values.
        scales: Bytes of the scales.
        biases: Bytes of the biases (the format's, not the layer's).
        label: The format in words.
    """

    path: str
    shape: tuple[int, ...]
    weights: int
    scales: int = 0
    biases: int = 0
    label: str = "plain"

    @property
    def parameters(self) -> int:
        """Weights stood for."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.weights + self.scales + self.biases


@dataclass(frozen=True)
class Inventory:
    """A model's tensors, and what running it adds.

    Attributes:
        rows: All matrices and tensors.
        kv_bytes_per_token: Of the KV cache, for one sequence, in half precision.
        activation_bytes: Largest pair of activations of a prefill step of 2048
            tokens (mlx-lm's), in half precision: an estimate.
    """

    rows: tuple[MatrixBytes, ...]
    kv_bytes_per_token: int
    activation_bytes: int

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(row.nbytes for row in self.rows)

    @property
    def repacked(self) -> int:
        """Bytes that ``repack=True`` adds on a CPU, at most: 2, 4 and 8 bits again.

        A matrix whose rows are only looked up is not copied, and rows are made up to
        multiples of 16.
        """
        return sum(
            row.nbytes for row in self.rows if row.label.startswith(_REPACKED_FORMATS)
        )

    @property
    def parameters(self) -> int:
        """Weights, as the model counts them."""
        return sum(row.parameters for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """With scales and biases counted."""
        return 8 * self.nbytes / self.parameters

    def total(self, context: int) -> int:
        """Bytes to run a sequence of `context` tokens."""
        return self.nbytes + context * self.kv_bytes_per_token + self.activation_bytes

    def fits(self, context: int, memory_gb: int) -> bool:
        """Tell whether it runs on a Mac with so much memory."""
        return self.total(context) <= USABLE_SHARE * memory_gb * 2**30


def by_layer(inventory: Inventory) -> dict[str, list[MatrixBytes]]:
    """The tensors of each decoder layer, and one by one those outside of them."""
    layers: dict[str, list[MatrixBytes]] = {}
    for row in inventory.rows:
        found = _LAYER.match(row.path)
        layers.setdefault(found[0] if found else row.path, []).append(row)
    return layers


def stored(path: str, shape: tuple[int, ...], form: Format) -> MatrixBytes:
    """A matrix as it would be in a format."""
    count = 1
    for n in shape:
        count *= n
    pair = count // form.group_size * (4 if form.scale_dtype == "float32" else 2)
    label = f"{form.bits}-bit g{form.group_size}"
    return MatrixBytes(path, shape, count * form.bits // 8, pair, pair, label)


def what_if(inventory: Inventory, plan: Mapping[str, Format]) -> Inventory:
    """The same model with its matrices in other formats."""
    rows = tuple(
        stored(row.path, row.shape, plan[row.path]) if row.path in plan else row
        for row in inventory.rows
    )
    return Inventory(rows, inventory.kv_bytes_per_token, inventory.activation_bytes)


def kv_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Bytes of keys and values that one token adds, in half precision.

    Args:
        config: A model's `config.json`; 0 if it does not tell.
    """
    text = {**config, **config.get("text_config", {})}
    try:
        heads = int(text["num_attention_heads"])
        width = int(text.get("head_dim") or text["hidden_size"] // heads)
        kv_heads = int(text.get("num_key_value_heads") or heads)
        return 2 * int(text["num_hidden_layers"]) * kv_heads * width * _HALF
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return 0


def activation_bytes(config: Mapping[str, Any], prefill: int = 2048) -> int:
    """Of a prefill step: the MLP's two intermediate products, or the attention's."""
    text = {**config, **config.get("text_config", {})}
    try:
        hidden = int(text["hidden_size"])
        inner = int(text.get("intermediate_size") or 4 * hidden)
    except (KeyError, TypeError, ValueError):
        return 0
    return prefill * (2 * inner + 2 * hidden) * _HALF

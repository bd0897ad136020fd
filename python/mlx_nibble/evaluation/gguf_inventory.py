"""The inventory of a GGUF file, from its header alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_nibble.evaluation.memory import (
    Inventory,
    MatrixBytes,
    activation_bytes,
    kv_bytes_per_token,
)
from mlx_nibble.io.gguf.parts import part_files, read_parts
from mlx_nibble.io.gguf.reader import TensorInfo
from mlx_nibble.layerwise.matrices import natural

_BITS = re.compile(r"\d+")
# Names of sizes in config.json, and in GGUF's metadata below the architecture's name.
_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}


def read_gguf_inventory(path: Path) -> Inventory:
    """Count the tensors of a GGUF file of any architecture.

    Args:
        path: The file, or any part of a split one.

    Raises:
        ValueError: If the file is malformed.
        OSError: If it cannot be read.
    """
    file = read_parts(part_files(path))
    rows = [_row(tensor) for tensor in file.tensors.values()]
    sizes = _sizes(file.metadata)
    return Inventory(
        tuple(sorted(rows, key=lambda row: natural(row.path))),
        kv_bytes_per_token(sizes),
        activation_bytes(sizes),
    )


def _row(tensor: TensorInfo) -> MatrixBytes:
    kind = tensor.type
    if kind.elements == 1:
        return MatrixBytes(tensor.name, tensor.shape, tensor.nbytes)
    found = _BITS.search(kind.name)
    assert found is not None  # all of ggml's block types state their width
    bits = int(found[0])
    blocks = tensor.nbytes // kind.nbytes
    codes = blocks * kind.elements * bits // 8
    scales = tensor.nbytes - codes
    return MatrixBytes(
        tensor.name, tensor.shape, codes, scales, label=kind.name, bits=bits
    )


def _sizes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    kind = metadata.get("general.architecture")
    return {
        name: value
        for name, key in _SIZES.items()
        if isinstance(value := metadata.get(f"{kind}.{key}"), int)
    }

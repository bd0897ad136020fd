"""The inventory of a model folder, from the headers of its files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mlx_nibble.evaluation.memory import (
    Inventory,
    MatrixBytes,
    activation_bytes,
    kv_bytes_per_token,
    label,
)
from mlx_nibble.io.checkpoint import read_checkpoint
from mlx_nibble.io.config import stored_settings
from mlx_nibble.layerwise.matrices import natural


class _Tensor(Protocol):
    """The shape and the size of a tensor, such as an array's."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


def read_inventory(folder: Path) -> Inventory:
    """Count the tensors of a model folder.

    Raises:
        ValueError: If it is no model folder, or a matrix is malformed.
    """
    config, tensors = read_checkpoint(folder, "inspect")
    return inventory_of(config, tensors, str(folder))


def inventory_of(
    config: dict[str, Any], tensors: Mapping[str, _Tensor], name: str
) -> Inventory:
    """Count the tensors of a model.

    Args:
        config: The model's configuration.
        tensors: Path of each tensor to its shape and size.
        name: The model's name, for errors.

    Raises:
        ValueError: If there is none, or a matrix is malformed.
    """
    if not tensors:
        raise ValueError(f"[inspect] tensors are required but {name!r} has none.")
    rows = tuple(
        _row(path, tensor, tensors, config)
        for path, tensor in sorted(tensors.items(), key=lambda item: natural(item[0]))
        if not _is_part(path, tensors)
    )
    return Inventory(rows, kv_bytes_per_token(config), activation_bytes(config))


def _is_part(path: str, tensors: Mapping[str, _Tensor]) -> bool:
    """Tell whether a tensor is the scales or biases of a quantized matrix."""
    owner, _, name = path.rpartition(".")
    return name in ("scales", "biases") and f"{owner}.weight" in tensors


def _row(
    path: str, tensor: _Tensor, tensors: Mapping[str, _Tensor], config: dict[str, Any]
) -> MatrixBytes:
    owner = path.removesuffix(".weight")
    scales = tensors.get(f"{owner}.scales")
    if not path.endswith(".weight") or scales is None:
        return MatrixBytes(path, tuple(tensor.shape), tensor.nbytes)
    settings = stored_settings(config, owner)
    group_size = settings["group_size"]
    inputs = scales.shape[-1] * group_size if scales.ndim else 0
    if tensor.shape[:-1] != scales.shape[:-1] or inputs == 0:
        raise ValueError(
            f"[inspect] weights and scales with the same rows are required but those "
            f"of {owner!r} have shapes {tensor.shape} and {scales.shape}."
        )
    bits = tensor.shape[-1] * 32 // inputs
    biases = tensors.get(f"{owner}.biases")
    return MatrixBytes(
        owner,
        (*tensor.shape[:-1], inputs),
        tensor.nbytes,
        scales.nbytes,
        0 if biases is None else biases.nbytes,
        label(bits, group_size, settings["mode"]),
        bits,
    )

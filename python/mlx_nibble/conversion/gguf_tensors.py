"""The tensors of a GGUF file, assigned to the modules of mlx-lm's model.

llama.cpp's converter reorders the rows of the q and k projections, so that the
two halves that rotary embedding pairs lie side by side. Only rows (output
channels) move, hence packed weights are reordered without unpacking.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mlx_nibble.conversion.gguf_architectures import Architecture, sizes
from mlx_nibble.io.gguf.blocks import Affine
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF


def tensor_names(
    file: GGUF, architecture: Architecture, config: dict[str, Any]
) -> dict[str, str]:
    """Find and check the tensor of each module.

    Args:
        file: A file that ``read_gguf`` returned.
        architecture: The row of the file.
        config: The configuration that ``model_config`` returned.

    Returns:
        Module path (``model.layers.0.self_attn.q_proj``) to tensor name
        (``blk.0.attn_q.weight``).

    Raises:
        ValueError: If a tensor is missing, has a shape that the configuration
            does not give it, or has no place in the model.
    """
    layers, parts = config["num_hidden_layers"], architecture.layer
    # Checked before a dictionary gets a size that a stranger wrote.
    if layers * len(parts) > len(file.tensors):
        fail(
            f"{layers} layers need {layers * len(parts)} tensors but the file has "
            f"{len(file.tensors)}."
        )
    places = {f"{name}.weight": place for name, place in architecture.outside.items()}
    if config["tie_word_embeddings"]:
        del places["output.weight"]
    for layer in range(layers):
        for part, place in parts.items():
            path = f"model.layers.{layer}.{place.path}"
            places[f"blk.{layer}.{part}.weight"] = replace(place, path=path)

    size = sizes(config)
    for name, place in places.items():
        shape = tuple(size[dimension] for dimension in place.shape)
        if name not in file.tensors:
            fail(f"tensor {name!r} is required but is missing.")
        if file.tensors[name].shape != shape:
            got = file.tensors[name].shape
            fail(f"tensor {name!r} must have shape {shape} but has {got}.")
    if strangers := file.tensors.keys() - places.keys():
        model, stranger = architecture.name, min(strangers)
        fail(f"a tensor of a {model} model is required but {stranger!r} has no place.")
    return {place.path: name for name, place in places.items()}


def unpermute(
    tensor: Affine | np.ndarray,
    name: str,
    architecture: Architecture,
    config: dict[str, Any],
) -> Affine | np.ndarray:
    """Return a tensor with its rows in mlx-lm's order.

    Args:
        tensor: The data of ``name``, [N, K].
        name: The tensor's name in the GGUF.
        architecture: The row of the file.
        config: The configuration that ``model_config`` returned.
    """
    place = architecture.layer.get(name.split(".")[-2])
    if place is None or place.rotated_heads is None:
        return tensor
    heads = config[place.rotated_heads]

    def reorder(rows: np.ndarray) -> np.ndarray:
        pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)

    if isinstance(tensor, np.ndarray):
        return reorder(tensor)
    return Affine(
        reorder(tensor.weight),
        reorder(tensor.scales),
        reorder(tensor.biases),
        tensor.bits,
    )

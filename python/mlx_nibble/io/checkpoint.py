"""A model in the form that mlx-lm loads: safetensors, index, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.io.config import read_config
from mlx_nibble.io.packing import require_plain
from mlx_nibble.io.safetensors import tensor_names
from mlx_nibble.io.shards import USUAL, weight_files
from mlx_nibble.io.stranger import open_regular

# Suffixes of the files beside the weights that mlx-lm and transformers open.
_OPENED = {".json", ".jinja", ".jsonl", ".model", ".py", ".tiktoken", ".txt"}
MAX_SHARD_BYTES = 5 << 30  # mlx-lm's MAX_FILE_SIZE_GB


def read_checkpoint(
    folder: Path, op: str
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """Read a model folder: its configuration, and the headers of its tensors.

    Args:
        folder: The model folder.
        op: Name of the operation in errors: ``[op] …``.

    Returns:
        The configuration, and parameter path to lazy array.

    Raises:
        ValueError: If it is no model folder, a part of it is missing, or another tool
            packed it.
    """
    if not folder.exists():
        raise ValueError(
            f"[{op}] a model folder is required but '{folder}' does not exist."
        )
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"[{op}] a model folder must hold config.json and model*.safetensors but "
            f"'{folder}' does not."
        )
    config = read_config(folder, op)
    require_plain(folder, config, op)
    return config, read_tensors(weight_files(folder, op), op)


def check_folder(folder: Path, op: str) -> None:
    """Check the files of a model folder that mlx-lm and transformers open.

    A command checks the folder before any work, and the loader whatever loads it. The
    headers are read once in a process.

    Raises:
        ValueError: If one is a pipe, a device or damaged. The error names it.
        OSError: If one cannot be read.
    """
    read_config(folder, op)
    for file in sorted(folder.iterdir()):
        if fnmatch(file.name, USUAL):
            tensor_names(file, op)
        elif file.suffix in _OPENED and not file.is_dir():
            open_regular(file, op).close()


def read_tensors(files: Iterable[Path], op: str = "load") -> dict[str, mx.array]:
    """Read the headers of files; return parameter path to lazy array.

    Args:
        files: Safetensors files.
        op: Name of the operation in errors: ``[op] …``.

    Raises:
        ValueError: If one is no safetensors file.
    """
    tensors: dict[str, mx.array] = {}
    for file in files:
        tensor_names(file, op)
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        tensors |= loaded
    return tensors


def quantized_tensors(
    path: str, words: np.ndarray, scales: np.ndarray, biases: np.ndarray, dtype: str
) -> dict[str, mx.array]:
    """Return the tensors of one quantized matrix, by the names that MLX reads.

    Args:
        path: Path of the module.
        words: Packed codes.
        scales: Scales of the groups.
        biases: Biases of the groups.
        dtype: Type to store scales and biases in.
    """
    kind = getattr(mx, dtype)
    return {
        f"{path}.weight": mx.array(words),
        f"{path}.scales": mx.array(scales).astype(kind),
        f"{path}.biases": mx.array(biases).astype(kind),
    }


def dequantized_tensor(
    path: str, tensors: Mapping[str, mx.array], group_size: int, bits: int
) -> mx.array:
    """Return the weight of a quantized matrix, float32.

    Args:
        path: Path of the module.
        tensors: Those of :func:`quantized_tensors`.
        group_size: Weights of a group.
        bits: Width of a code.
    """
    return mx.dequantize(
        tensors[f"{path}.weight"],
        tensors[f"{path}.scales"].astype(mx.float32),
        tensors[f"{path}.biases"].astype(mx.float32),
        group_size=group_size,
        bits=bits,
    )


def dtype_name(dtype: mx.Dtype) -> str:
    """Return the name that `getattr(mx, name)` turns into the type."""
    return str(dtype).rpartition(".")[2]


def save_weights(folder: Path, weights: dict[str, mx.array]) -> None:
    """Write `model*.safetensors` and their index, as mlx-lm does.

    Args:
        folder: An existing folder without weights.
        weights: Parameter path to array.

    Raises:
        OSError: If a file cannot be written whole.
    """
    shards = _shards(weights)
    names = [
        "model.safetensors"
        if len(shards) == 1
        else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    weight_map = {}
    for name, shard in zip(names, shards, strict=True):
        save_tensors(folder / name, shard, {"format": "mlx"})
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(array.nbytes for array in weights.values())
    save_json(
        folder / "model.safetensors.index.json",
        {
            "metadata": {"total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        },
    )


def save_tensors(
    path: Path,
    arrays: Mapping[str, mx.array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file.

    Raises:
        OSError: If it cannot be written whole.
    """
    written = None if metadata is None else dict(metadata)
    try:
        mx.save_safetensors(str(path), dict(arrays), written)
    except RuntimeError as error:  # MLX's error, which lacks the reason
        reason = _why_not_written(path) or str(error).rstrip(".")
        raise OSError(f"[save] {path} could not be written: {reason}.") from error


def _why_not_written(path: Path) -> str | None:
    """Return the system's words, from one more attempt to write."""
    try:
        with path.open("ab") as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        return error.strerror
    return None


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file as Hugging Face's tools do: indented, with UTF-8 text."""
    path.write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _shards(weights: dict[str, mx.array]) -> list[dict[str, mx.array]]:
    shards: list[dict[str, mx.array]] = [{}]
    room = MAX_SHARD_BYTES
    for name, array in weights.items():
        if shards[-1] and array.nbytes > room:
            shards.append({})
            room = MAX_SHARD_BYTES
        shards[-1][name] = array
        room -= array.nbytes
    return shards

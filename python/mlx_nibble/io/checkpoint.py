"""A model in the form that mlx-lm loads: safetensors, index, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx

MAX_SHARD_BYTES = 5 << 30  # mlx-lm's MAX_FILE_SIZE_GB


def read_config(folder: Path, op: str) -> dict[str, Any]:
    """What a model folder's `config.json` holds.

    Args:
        folder: The model folder.
        op: Named in errors: ``[op] …``.

    Raises:
        ValueError: If it is no JSON object.
        OSError: If it cannot be read.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"[{op}] a JSON object is required in '{file}' but got: {error}."
        ) from error
    if not isinstance(config, dict):
        raise ValueError(
            f"[{op}] a JSON object is required in '{file}' but got a "
            f"{type(config).__name__}."
        )
    for key in ("quantization", "quantization_config"):
        if not isinstance(config.get(key), dict | None):
            raise ValueError(
                f"[{op}] a JSON object is required as {key!r} in '{file}' but got a "
                f"{type(config[key]).__name__}."
            )
    return config


def read_checkpoint(
    folder: Path, op: str
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """A model folder's configuration and tensors, of which headers alone are read.

    Args:
        folder: The model folder.
        op: Named in errors: ``[op] …``.

    Returns:
        What `config.json` holds, and parameter path to array.

    Raises:
        ValueError: If it is no model folder.
        RuntimeError: If a safetensors file is truncated.
    """
    if not folder.exists():
        raise ValueError(
            f"[{op}] a model folder is required but '{folder}' does not exist."
        )
    files = sorted(folder.glob("model*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise ValueError(
            f"[{op}] a model folder must hold config.json and model*.safetensors but "
            f"'{folder}' does not."
        )
    return read_config(folder, op), read_tensors(files)


def read_tensors(files: Iterable[Path]) -> dict[str, mx.array]:
    """Parameter path to array, of which headers alone are read."""
    tensors: dict[str, mx.array] = {}
    for file in files:
        loaded = mx.load(str(file))  # lazy
        assert isinstance(loaded, dict)
        tensors |= loaded
    return tensors


def save_weights(folder: Path, weights: dict[str, mx.array]) -> None:
    """Write `model*.safetensors` and their index, as mlx-lm does.

    Args:
        folder: Exists, and holds no weights yet.
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
        try:
            mx.save_safetensors(str(folder / name), shard, metadata={"format": "mlx"})
        except RuntimeError as error:  # MLX's own, without the reason
            message = f"[save] {folder / name} could not be written: {error}"
            raise OSError(message) from error
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(array.nbytes for array in weights.values())
    save_json(
        folder / "model.safetensors.index.json",
        {
            "metadata": {"total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        },
    )


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

"""Write a model in the form that mlx-lm loads: safetensors, index, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

MAX_SHARD_BYTES = 5 << 30  # mlx-lm's MAX_FILE_SIZE_GB


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

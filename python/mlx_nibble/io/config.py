"""config.json of a model folder: read, checked, and its entry of quantization."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_nibble.formats import Format

# MLX's name of the mode, and its values of settings that a config.json leaves out.
_DEFAULTS = {"group_size": 64, "bits": 4, "mode": "affine"}


def read_config(folder: Path, op: str) -> dict[str, Any]:
    """Return the checked contents of a model folder's `config.json`.

    Args:
        folder: The model folder.
        op: Name of the operation in errors: ``[op] …``.

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


def with_quantization(
    config: Mapping[str, Any], usual: Format, plan: Mapping[str, Format]
) -> dict[str, Any]:
    """Return a configuration with the formats of its matrices, as mlx-lm reads it.

    Args:
        config: The configuration; its own quantization is replaced.
        usual: The format to state once.
        plan: Path of each quantized matrix to its format; one that is not `usual`
            gets an entry.
    """
    own = {path: form.config for path, form in plan.items()}
    entry = usual.config
    entry |= {path: mine for path, mine in own.items() if mine != usual.config}
    # mlx-lm writes it twice: Hugging Face's tools read the second.
    return {**config, "quantization": entry, "quantization_config": entry}


def stored_settings(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return `group_size`, `bits` and `mode` of a quantized matrix.

    Args:
        config: A model's configuration.
        path: The matrix's path in the model.
    """
    usual = config.get("quantization") or {}
    own = usual.get(path)
    stated = own if isinstance(own, dict) else usual
    return {key: stated.get(key, value) for key, value in _DEFAULTS.items()}

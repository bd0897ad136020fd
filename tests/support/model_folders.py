"""Tiny model folders that mlx-lm loads: weights, a configuration, a tokenizer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.utils import save_config, save_model

from mlx_nibble.conversion.gguf_import import import_gguf
from tests.support.gguf_writer import tiny_llama

# Size of the tokenizer's vocabulary, and so of the models'.
VOCABULARY = 320


def write(folder: Path, model: nn.Module, config: dict[str, Any]) -> Path:
    """Write a model of :data:`VOCABULARY` tokens beside the tiny GGUF's tokenizer."""
    write_tokenizer(folder)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


def imported(folder: Path) -> Path:
    """Import the tiny GGUF to a new folder, and return the folder."""
    with tempfile.TemporaryDirectory() as name:
        gguf = Path(name, "tiny.gguf")
        gguf.write_bytes(tiny_llama())
        import_gguf(gguf, folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write the tiny GGUF's tokenizer to a new folder, without a model."""
    imported(folder)
    for file in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        (folder / file).unlink()

"""Tiny GPTQ folders with a tokenizer, to convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from tests.support import model_folders, tiny_models

SIZES = {"vocab_size": model_folders.VOCABULARY, "hidden_size": 32}
SIZES |= {"intermediate_size": 64, "num_hidden_layers": 2}
SETTINGS = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}


def tensors(family: str, rng: np.random.Generator) -> dict[str, mx.array]:
    """Return a random model's tensors, its projections as GPTQ stores them."""
    stored = {}
    model = tiny_models.build(family, **SIZES)
    for path, value in tree_flatten(model.parameters()):
        if not path.endswith("_proj.weight"):
            stored[path] = value.astype(mx.float16)
            continue
        rows, inputs = value.shape
        shape = (inputs // 32, rows)
        scales = rng.uniform(0.01, 0.02, shape).astype(np.float16)
        parts = {
            "qweight": rng.integers(0, 2**31, (inputs // 8, rows), dtype=np.int32),
            # Zeros of 8 are stored less one.
            "qzeros": np.full((shape[0], rows // 8), 0x77777777, np.int32),
            "scales": scales,
            "g_idx": (np.arange(inputs) // 32).astype(np.int32),
        }
        prefix = path.removesuffix("weight")
        stored |= {prefix + name: mx.array(part) for name, part in parts.items()}
    return stored


def write(
    folder: Path,
    stored: dict[str, mx.array],
    family: str = "llama",
    **settings: Any,
) -> Path:
    """Write a folder of these tensors, with a tokenizer; return it."""
    config = tiny_models.config(family, **SIZES)
    model_folders.write_tokenizer(folder)
    mx.save_safetensors(str(folder / "model.safetensors"), stored, {"format": "pt"})
    config["quantization_config"] = SETTINGS | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder

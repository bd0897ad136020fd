"""Model folders for conversion and evaluation: read weights, write companion files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn
from mlx_lm import utils as mlx_lm_utils

from mlx_nibble.acceleration.settings import DEFAULTS, Settings
from mlx_nibble.io.stranger import local_path
from mlx_nibble.lm.dtypes import on_cpu
from mlx_nibble.lm.load import load, load_as_it_is


def load_full_precision(
    path_or_hf_repo: str, trust_remote_code: bool = False
) -> tuple[mlx_nn.Module, Any, dict[str, Any]]:
    """Load a model lazily, and dequantize it if it is quantized.

    Returns:
        The model, its tokenizer, and its configuration without a quantization.
    """
    model, tokenizer, *others = load_as_it_is(
        path_or_hf_repo,
        lazy=True,
        return_config=True,
        trust_remote_code=trust_remote_code,
    )
    (config,) = others
    if config.pop("quantization", None) is not None:
        model = mlx_lm_utils.dequantize_model(model)
    config.pop("quantization_config", None)
    return model, tokenizer, config


def save_companions(
    folder: Path, source: str, tokenizer: Any, config: dict[str, Any]
) -> None:
    """Write the files beside the weights of a model folder, as mlx-lm does.

    Args:
        folder: The unfinished model folder.
        source: Origin of the model: a folder, or a repository of the Hub.
        tokenizer: Tokenizer from :func:`mlx_lm.load`.
        config: Configuration with its quantization.
    """
    path = Path(local_path(source))
    if not path.exists():
        path = Path(mlx_lm_utils.hf_repo_to_path(source))
    mlx_lm_utils.save_config(config, config_path=folder / "config.json")
    tokenizer.save_pretrained(folder)
    for file in [*path.glob("*.py"), path / "generation_config.json"]:
        if file.exists():
            shutil.copy(file, folder)


def load_for_evaluation(
    path_or_hf_repo: str, settings: Settings = DEFAULTS
) -> tuple[mlx_nn.Module, Any]:
    """Load a model that predicts long texts, and its tokenizer.

    On the CPU the model is dequantized to float32. Its weights are the same, and
    :func:`mlx_nibble.layerwise.cpu_math.fast_dense` computes its products. With 8-bit
    activations the model stays quantized: only our products show their loss.
    """
    if settings.activations is not None or not on_cpu():
        return load(path_or_hf_repo, **vars(settings))[:2]
    model, tokenizer = load_as_it_is(path_or_hf_repo, lazy=True)[:2]
    model.set_dtype(mx.float32)  # scales, too, so that weights are not rounded
    return mlx_lm_utils.dequantize_model(model), tokenizer

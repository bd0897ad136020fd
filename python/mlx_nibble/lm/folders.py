"""Model folders for conversion and evaluation: read weights, write companion files."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn
from mlx.utils import tree_map_with_path
from mlx_lm import utils as mlx_lm_utils

from mlx_nibble.acceleration.settings import DEFAULTS, Settings
from mlx_nibble.io.companions import copy_companions
from mlx_nibble.lm.checked import checked_loading
from mlx_nibble.lm.dtypes import on_cpu
from mlx_nibble.lm.load import consent, load, load_as_it_is


def model_folder(path_or_hf_repo: str) -> Path:
    """Return a model's folder; download it from the Hub if there is none here."""
    with checked_loading():
        return Path(mlx_lm_utils._download(path_or_hf_repo))


def load_full_precision(
    folder: Path,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    dequantize: bool = True,
) -> tuple[mlx_nn.Module, dict[str, Any]]:
    """Load a model lazily, and dequantize it if it is quantized.

    Args:
        folder: The model folder.
        dtype: Type to round all parameters to, except those whose type the model's
            class keeps. Default: their own.
        trust_remote_code: Whether the folder's Python code may run.
        dequantize: False leaves a quantized model as it is.

    Returns:
        The model, and its configuration, which states no quantization that is gone.

    Raises:
        ValueError: If a parameter of the model is missing, or a tensor is none.
    """
    model, config = _load_model(folder, trust_remote_code)
    if dequantize:
        if config.pop("quantization", None) is not None:
            model = mlx_lm_utils.dequantize_model(model)
        config.pop("quantization_config", None)
    if dtype is not None:
        _cast(model, getattr(mx, dtype))
        config = {**config, _dtype_key(config): dtype}
    return model, config


def _dtype_key(config: dict[str, Any]) -> str:
    """Return the key of a configuration's type, which transformers has renamed."""
    return "dtype" if "dtype" in config else "torch_dtype"


def _cast(model: mlx_nn.Module, dtype: mx.Dtype) -> None:
    """Cast a model as ``mlx_lm.convert`` does: its class may keep some types."""
    casts = getattr(model, "cast_predicate", lambda path: True)

    def cast(path: str, value: Any) -> Any:
        floating = mx.issubdtype(value.dtype, mx.floating)
        return value.astype(dtype) if floating and casts(path) else value

    model.update(tree_map_with_path(cast, model.parameters()))


def quantize_in_mode(
    model: mlx_nn.Module, config: dict[str, Any], mode: str
) -> tuple[mlx_nn.Module, dict[str, Any]]:
    """Quantize a model in one of MLX's modes, as ``mlx_lm.convert`` does."""
    with redirect_stdout(io.StringIO()):  # our report says the same
        return mlx_lm_utils.quantize_model(model, config, None, None, mode)


def require_upload(repo: str) -> None:
    """Check that a model can be sent to a repository of the Hub, as far as is known.

    Raises:
        ValueError: If the name is none, or the user has not logged in.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(
            f"[convert] --upload-repo must be OWNER/NAME: {error}"
        ) from None
    if get_token() is None:
        raise ValueError(
            "[convert] --upload-repo requires a token of the Hugging Face Hub: run hf "
            "auth login, or set HF_TOKEN."
        )


def upload(folder: Path, repo: str) -> None:
    """Send a model folder to the Hub, as ``mlx_lm.upload`` does."""
    mlx_lm_utils.upload_to_hub(str(folder), repo)


def load_tokenizer(
    folder: Path, config: dict[str, Any], trust_remote_code: bool = False
) -> Any:
    """Load the tokenizer of a model as :func:`mlx_lm.load` does."""
    end = config.get("eos_token_id")
    extra = {"trust_remote_code": trust_remote_code}
    with checked_loading():
        return mlx_lm_utils.load_tokenizer(folder, extra, eos_token_ids=end)


def save_companions(folder: Path, source: Path, config: dict[str, Any]) -> None:
    """Write the files beside the weights of a model folder.

    mlx-lm writes the tokenizer anew. The original files give the same tokens for sure.

    Args:
        folder: The unfinished model folder.
        source: The folder of the original model.
        config: Configuration with its quantization.
    """
    copy_companions(source, folder)
    mlx_lm_utils.save_config(config, config_path=folder / "config.json")


def require_family(config: dict[str, Any]) -> None:
    """Check that mlx-lm has a model's family.

    Raises:
        ValueError: If it has not.
    """
    try:
        mlx_lm_utils._get_classes(config=config)
    except KeyError as error:
        raise ValueError(
            f"[convert] a configuration must have {error} but has none."
        ) from error


def require_loadable(folder: Path, trust_remote_code: bool = False) -> None:
    """Check that mlx-lm loads a folder: each parameter, of its shape, and no other.

    Raises:
        ValueError: If it does not.
    """
    _load_model(folder, trust_remote_code)


def _load_model(
    folder: Path, trust_remote_code: bool
) -> tuple[mlx_nn.Module, dict[str, Any]]:
    """Load a model lazily, after a check of its files."""
    with checked_loading():
        return mlx_lm_utils.load_model(
            folder, lazy=True, trust_remote_code=trust_remote_code
        )


def load_for_evaluation(
    path_or_hf_repo: str,
    settings: Settings = DEFAULTS,
    trust_remote_code: bool = False,
) -> tuple[mlx_nn.Module, Any]:
    """Load a model that predicts long texts, and its tokenizer.

    On the CPU the model is dequantized to float32. Its weights are the same, and
    :func:`mlx_nibble.layerwise.cpu_math.fast_dense` computes its products. With 8-bit
    activations the model stays quantized: only our products show their loss.

    Args:
        path_or_hf_repo: A model folder, or a repository of the Hugging Face Hub.
        settings: Settings of the accelerated model.
        trust_remote_code: Whether the folder's Python code may run.
    """
    asked = consent(trust_remote_code)
    if settings.activations is not None or not on_cpu():
        return load(path_or_hf_repo, **vars(settings), **asked)[:2]
    model, tokenizer = load_as_it_is(path_or_hf_repo, lazy=True, **asked)[:2]
    model.set_dtype(mx.float32)  # scales, too, so that weights are not rounded
    return mlx_lm_utils.dequantize_model(model), tokenizer

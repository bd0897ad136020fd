"""Folders whose weights another tool packed: which tool, and the command that reads it.

Transformers' `quantization_config` names the tool.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMPORTED = {"awq": "AWQ", "gptq": "GPTQ", "compressed-tensors": "compressed-tensors"}
"""Methods that `nibble convert` imports, and their names in messages."""

# Methods that mlx-lm's loader or a model of it reads.
_OF_MLX_LM = ("bitnet", "fp8", "modelopt", "mxfp4", "mxfp8")
# The formats of compressed-tensors that mlx-lm's loader reads.
_FORMATS_OF_MLX_LM = ("mxfp4-pack-quantized", "nvfp4-pack-quantized")
# Models of mlx-lm that read the packed experts of compressed-tensors.
_MODELS_WITH_EXPERTS = ("deepseek_v3", "kimi_k2", "kimi_k25", "kimi_k3", "mistral4")


def packing(folder: Path, config: Mapping[str, Any], op: str) -> dict[str, Any] | None:
    """Return the settings of the tool that packed a folder, with its `quant_method`.

    Args:
        folder: The model folder.
        config: Its configuration.
        op: Name of the operation in errors: ``[op] …``.

    Returns:
        The settings; None for a folder of plain weights, or of MLX's own formats.

    Raises:
        ValueError: If the settings are malformed.
    """
    if config.get("quantization") is not None:
        return None
    settings = config.get("quantization_config")
    if settings is None and isinstance(text := config.get("text_config"), dict):
        settings = text.get("quantization_config")
    if not isinstance(settings, dict) or settings.get("quant_method") is None:
        return None
    method = settings["quant_method"]
    if not isinstance(method, str):
        raise ValueError(
            f"[{op}] quant_method in '{folder / 'config.json'}' must be a name but is "
            f"a {type(method).__name__}."
        )
    return {**settings, "quant_method": method.lower()}


def is_imported(folder: Path, config: Mapping[str, Any], op: str) -> bool:
    """Tell whether `nibble convert` imports a folder's packed weights."""
    settings = packing(folder, config, op)
    return (
        settings is not None
        and settings["quant_method"] in IMPORTED
        and settings.get("format") not in _FORMATS_OF_MLX_LM
    )


def require_readable(folder: Path, config: Mapping[str, Any], op: str) -> None:
    """Refuse a packed folder that mlx-lm does not read, or would read wrongly.

    Raises:
        ValueError: With the command that reads it, if there is one.
    """
    settings = packing(folder, config, op)
    if settings is None or _mlx_lm_reads(settings, config):
        return
    method = settings["quant_method"]
    if method in IMPORTED:
        require_plain(folder, config, op)
    raise ValueError(
        f"[{op}] weights that MLX reads are required but {str(folder)!r} was packed "
        f"by {method[:40]!r}, which is not supported: use the unpacked model that it "
        "was made from."
    )


def require_plain(folder: Path, config: Mapping[str, Any], op: str) -> None:
    """Refuse a folder that must be imported first.

    Raises:
        ValueError: With the command that imports it.
    """
    if is_imported(folder, config, op):
        settings = packing(folder, config, op) or {}
        raise ValueError(
            f"[{op}] weights that MLX reads are required but {str(folder)!r} was "
            f"packed by {IMPORTED[settings['quant_method']]}: run nibble convert "
            f"{shlex.quote(str(folder))} OUT, and use OUT."
        )


def _mlx_lm_reads(settings: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    method = settings["quant_method"]
    if method == "compressed-tensors":
        experts = config.get("model_type") in _MODELS_WITH_EXPERTS
        return experts or settings.get("format") in _FORMATS_OF_MLX_LM
    if method == "awq":  # its GEMM layout; mlx-lm reads GPTQ's as if it were this one
        version = str(settings.get("version", "gemm")).lower()
        sizes = settings.get("bits", 4), settings.get("group_size", 128)
        return version == "gemm" and sizes in ((4, 32), (4, 64), (4, 128))
    return method in _OF_MLX_LM

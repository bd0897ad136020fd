"""Folders whose weights another tool packed: which tool, and the command that reads it.

Transformers' `quantization_config` names the tool.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_nibble.io.safetensors import tensor_names
from mlx_nibble.io.stranger import read_json

IMPORTED = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "fbgemm_fp8": "FBGEMM",
    "modelopt": "ModelOpt",
    "bitsandbytes": "bitsandbytes",
    "hqq": "HQQ",
    "auto-round": "AutoRound",
}
"""Methods that `nibble convert` imports, and their names in messages."""

# Methods that mlx-lm's loader reads.
_OF_MLX_LM = ("bitnet", "mxfp4", "mxfp8")
# Models of mlx-lm that read the packed experts of compressed-tensors.
_MODELS_WITH_EXPERTS = ("deepseek_v3", "kimi_k2", "kimi_k25", "kimi_k3", "mistral4")
MODELS_WITH_FP8 = (
    *("deepseek_v3", "deepseek_v32", "deepseek_v41", "deepseek_v41_text"),
    *("joyai_llm_flash", "kimi_k2", "mimo_v2_flash", "minimax", "minimax_m2"),
    *("minimax_m3_vl", "mistral4"),
)
"""Models of mlx-lm that read FP8 when they load it. Its Ministral 3 takes the codes for
integers, and is not among them."""
_FLOATS = re.compile(r"(nv|mx)fp\d-(pack-)?quantized")
# ModelOpt has its settings in a file of its own, or in config.json.
_MODELOPT, _LARGEST_SETTINGS = "hf_quant_config.json", 1 << 22


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
    if settings is None and (folder / _MODELOPT).is_file():
        stated = read_json(folder / _MODELOPT, op, _LARGEST_SETTINGS)
        settings = {**stated, "quant_method": "modelopt"}
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
    if settings is None or settings["quant_method"] not in IMPORTED:
        return False
    return not _mlx_lm_reads_floats(folder, settings, config)


def require_readable(folder: Path, config: Mapping[str, Any], op: str) -> None:
    """Refuse a packed folder that mlx-lm does not read, or would read wrongly.

    Raises:
        ValueError: With the command that reads it, if there is one.
    """
    settings = packing(folder, config, op)
    if settings is None or _mlx_lm_reads(folder, settings, config):
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


def _mlx_lm_reads(
    folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> bool:
    method = settings["quant_method"]
    if method == "compressed-tensors" and _model_type(config) in _MODELS_WITH_EXPERTS:
        return True
    if method == "awq":  # its GEMM layout; mlx-lm reads GPTQ's as if it were this one
        version = str(settings.get("version", "gemm")).lower()
        sizes = settings.get("bits", 4), settings.get("group_size", 128)
        return version == "gemm" and sizes in ((4, 32), (4, 64), (4, 128))
    return method in _OF_MLX_LM or _mlx_lm_reads_floats(folder, settings, config)


def _mlx_lm_reads_floats(
    folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> bool:
    """Tell whether mlx-lm reads a folder of floats of 4 or 8 bits, without a loss.

    Its loader knows the formats, but only tensors by MLX's names: those of another
    name are read by the classes of some models.
    """
    method, form = settings["quant_method"], settings.get("format")
    if method == "fp8":
        return _model_type(config) in MODELS_WITH_FP8
    if method == "compressed-tensors":
        if _model_type(config) == "kimi_k3":
            return form == "mxfp4-pack-quantized"
        known = isinstance(form, str) and _FLOATS.fullmatch(form) is not None
        return known and not _is_foreign(folder)
    return method == "modelopt" and not _is_foreign(folder)


def _is_foreign(folder: Path) -> bool:
    """Tell whether a folder has a tensor of scales by another name than MLX's."""
    ends = (".weight_packed", ".weight_scale")
    files = sorted(folder.glob("*.safetensors"))
    return any(n.endswith(ends) for f in files for n in tensor_names(f, "load"))


def _model_type(config: Mapping[str, Any]) -> Any:
    return config.get("model_type")

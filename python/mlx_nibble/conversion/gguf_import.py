"""GGUF to MLX checkpoint folder, without loss unless asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.formats import SCALE_DTYPES
from mlx_nibble.io.checkpoint import save_json, save_weights
from mlx_nibble.io.folder import new_folder
from mlx_nibble.io.gguf import GGUF, read_gguf
from mlx_nibble.io.gguf_blocks import Affine, read_tensor
from mlx_nibble.io.gguf_llama import (
    llama_config,
    llama_tensors,
    quantization_config,
    unpermute,
)
from mlx_nibble.io.gguf_tokenizer import build_tokenizer, tokenizer_config
from mlx_nibble.progress import Progress, silent


@dataclass(frozen=True)
class ImportReport:
    """What ``import_gguf`` wrote.

    Attributes:
        path: The folder.
        parameters: Weights, as the model counts them.
        nbytes: Bytes of all tensors.
        bits: Bits of the quantized matrices to how many have them.
        dtype: Of scales, offsets and all that is not quantized.
    """

    path: Path
    parameters: int
    nbytes: int
    bits: dict[int, int]
    dtype: str

    @property
    def bits_per_weight(self) -> float:
        """With scales and offsets counted."""
        return 8 * self.nbytes / self.parameters


def import_gguf(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str | None = None,
    progress: Progress = silent,
) -> ImportReport:
    """Convert a llama-architecture GGUF to a folder that mlx-lm loads.

    Q4_0, Q4_1 and Q8_0 matrices become 4- and 8-bit affine weights of group
    size 32, with the same codes and scales. All else keeps its values too, in the
    first of float16, bfloat16 and float32 that holds every one of them exactly.

    Args:
        source: The GGUF file.
        out: The folder to make; it must not exist.
        dtype: One of ``SCALE_DTYPES``: round scales, offsets and plain tensors to it.
        progress: Called with the bytes read so far and the bytes of the file.

    Returns:
        What was written.

    Raises:
        ValueError: If the file is malformed or not supported, or ``out`` exists.
        OSError: If a file cannot be read or written.
    """
    if dtype not in (None, *SCALE_DTYPES):
        raise ValueError(
            f"[convert] dtype must be one of {SCALE_DTYPES} but got {dtype!r}."
        )
    file = read_gguf(source)
    config = llama_config(file)
    names = llama_tensors(file, config)
    tokenizer = build_tokenizer(file)
    with new_folder(out, "convert") as folder:
        tensors = _read_all(file, config, names, progress)
        dtype = dtype or _exact_dtype(tensors)
        bits = {p: t.bits for p, t in tensors.items() if isinstance(t, Affine)}
        weights = _to_mlx(tensors, dtype)
        save_weights(folder, weights)
        save_json(folder / "config.json", _model_config(config, bits, dtype))
        save_json(folder / "generation_config.json", _generation_config(config))
        save_json(folder / "tokenizer_config.json", tokenizer_config(file))
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    widths = list(bits.values())
    return ImportReport(
        path=Path(out),
        parameters=sum(int(np.prod(file.tensors[n].shape)) for n in names.values()),
        nbytes=sum(array.nbytes for array in weights.values()),
        bits={width: widths.count(width) for width in sorted(set(widths))},
        dtype=dtype,
    )


def _read_all(
    file: GGUF,
    config: dict[str, Any],
    names: dict[str, str],
    progress: Progress,
) -> dict[str, Affine | np.ndarray]:
    tensors = {}
    total = sum(info.nbytes for info in file.tensors.values())
    done = 0
    for path, name in names.items():
        tensors[path] = unpermute(read_tensor(file, name), name, config)
        done += file.tensors[name].nbytes
        progress("Importing", done, total)
    return tensors


def _exact_dtype(tensors: dict[str, Affine | np.ndarray]) -> str:
    """The first type that holds every scale, offset and plain value exactly."""
    exact = {"float16": True, "bfloat16": True}
    for tensor in tensors.values():
        is_affine = isinstance(tensor, Affine)
        for values in (tensor.scales, tensor.biases) if is_affine else (tensor,):
            wide = values.astype(np.float32)
            with np.errstate(over="ignore"):
                halves = wide.astype(np.float16)
            exact["float16"] &= np.array_equal(wide, halves, equal_nan=True)
            # bfloat16 is the upper half of a float32.
            exact["bfloat16"] &= not (wide.view(np.uint32) & 0xFFFF).any()
    return next((dtype for dtype, holds in exact.items() if holds), "float32")


def _to_mlx(tensors: dict[str, Affine | np.ndarray], dtype: str) -> dict[str, mx.array]:
    kind = getattr(mx, dtype)
    weights = {}
    for path, tensor in tensors.items():
        if isinstance(tensor, Affine):
            weights[f"{path}.weight"] = mx.array(tensor.weight)
            weights[f"{path}.scales"] = mx.array(tensor.scales).astype(kind)
            weights[f"{path}.biases"] = mx.array(tensor.biases).astype(kind)
        else:
            weights[f"{path}.weight"] = mx.array(tensor).astype(kind)
    return weights


def _model_config(
    config: dict[str, Any], bits: dict[str, int], dtype: str
) -> dict[str, Any]:
    config = {**config, "torch_dtype": dtype}
    if bits:
        # mlx-lm writes it twice: the second is what Hugging Face's tools read.
        quantization = quantization_config(bits)
        config["quantization"] = quantization
        config["quantization_config"] = quantization
    return config


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    ids = ("bos_token_id", "eos_token_id")
    return {key: config[key] for key in ids if config[key] is not None}

"""GGUF file to MLX checkpoint folder; only a `dtype` that is asked for loses bits."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble import lm
from mlx_nibble.conversion.gguf_architectures import architecture_of
from mlx_nibble.conversion.gguf_config import generation_config, model_config
from mlx_nibble.conversion.gguf_tensors import tensor_names, unpermute
from mlx_nibble.conversion.gguf_tokenizer import build_tokenizer, tokenizer_config
from mlx_nibble.conversion.source import Source
from mlx_nibble.conversion.values import require_finite, rounded
from mlx_nibble.formats import SCALE_DTYPES, Format
from mlx_nibble.io.checkpoint import quantized_tensors, save_json, save_weights
from mlx_nibble.io.config import with_quantization
from mlx_nibble.io.folder import new_folder
from mlx_nibble.io.gguf.blocks import Affine
from mlx_nibble.io.gguf.parts import part_files, read_parts
from mlx_nibble.io.gguf.reader import read_tensor
from mlx_nibble.progress import Progress, silent

Tensors = dict[str, Affine | np.ndarray]
"""Path of each module to its weight."""


@dataclass(frozen=True)
class ImportReport:
    """Facts of the folder that ``import_gguf`` wrote.

    Attributes:
        path: The folder.
        parameters: Number of the model's weights.
        nbytes: Bytes of all tensors.
        bits: Width of codes to the number of matrices with this width.
        dtype: Type of scales, biases and all that is not quantized.
    """

    path: Path
    parameters: int
    nbytes: int
    bits: dict[int, int]
    dtype: str

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, with scales and biases counted."""
        return 8 * self.nbytes / self.parameters


def import_gguf(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str | None = None,
    progress: Progress = silent,
) -> ImportReport:
    """Convert a llama-architecture GGUF to a folder that mlx-lm loads.

    Q4_0, Q4_1 and Q8_0 matrices become 4- and 8-bit affine weights of group
    size 32, with the same codes and scales. All other tensors keep their values too:
    their type is the first of float16, bfloat16 and float32 that is exact for all.

    Args:
        source: The GGUF file, or any part of a split one, beside the others.
        out: The folder to make; it must not exist.
        dtype: Type to round scales, biases and plain tensors to, one of
            ``SCALE_DTYPES``.
        progress: Function of the step, the bytes read so far, and all bytes.

    Raises:
        ValueError: If the file is malformed or not supported, or ``out`` exists.
        OSError: If a file cannot be read or written.
    """
    if dtype not in (None, *SCALE_DTYPES):
        raise ValueError(
            f"[convert] dtype must be one of {SCALE_DTYPES} but got {dtype!r}."
        )
    files = part_files(source)
    state = Source(files)
    file = read_parts(files)
    architecture = architecture_of(file)
    config = model_config(file, architecture)
    names = tensor_names(file, architecture, config)
    tokenizer = build_tokenizer(file)
    total, done = sum(info.nbytes for info in file.tensors.values()), 0
    with new_folder(out, "convert") as folder:
        tensors: Tensors = {}
        for path, name in names.items():
            tensor = read_tensor(file, name)
            tensors[path] = unpermute(tensor, name, architecture, config)
            done += file.tensors[name].nbytes
            progress("Importing", done, total)
        dtype = dtype or _exact_dtype(tensors)
        plan = _plan(tensors, dtype)
        weights = _to_mlx(tensors, dtype)
        save_weights(folder, weights)
        stored = _stored_config(config, plan, dtype)
        save_json(folder / "config.json", stored)
        save_json(folder / "generation_config.json", generation_config(config))
        context = config["max_position_embeddings"]
        save_json(folder / "tokenizer_config.json", tokenizer_config(file, context))
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        lm.require_loadable(folder)
        state.require_unchanged()
    return ImportReport(
        path=Path(out),
        parameters=sum(int(np.prod(file.tensors[n].shape)) for n in names.values()),
        nbytes=sum(array.nbytes for array in weights.values()),
        bits=dict(sorted(Counter(form.bits for form in plan.values()).items())),
        dtype=dtype,
    )


def _exact_dtype(tensors: Tensors) -> str:
    """Return the first type that is exact for every scale, bias and plain value."""
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
    return next((dtype for dtype, is_exact in exact.items() if is_exact), "float32")


def _plan(tensors: Tensors, dtype: str) -> dict[str, Format]:
    """Return the format of each quantized matrix."""
    return {
        path: Format(tensor.bits, tensor.group_size, dtype)
        for path, tensor in tensors.items()
        if isinstance(tensor, Affine)
    }


def _to_mlx(tensors: Tensors, dtype: str) -> dict[str, mx.array]:
    weights = {}
    for path, t in tensors.items():
        if isinstance(t, Affine):
            require_finite(f"{path}.scales", mx.array(t.scales), dtype)
            require_finite(f"{path}.biases", mx.array(t.biases), dtype)
            weights |= quantized_tensors(path, t.weight, t.scales, t.biases, dtype)
        else:
            name = f"{path}.weight"
            weights[name] = rounded(name, mx.array(t), dtype)
    return weights


def _stored_config(
    config: dict[str, Any], plan: dict[str, Format], dtype: str
) -> dict[str, Any]:
    config = {**config, "torch_dtype": dtype}
    if not plan:
        return config
    usual = Counter(plan.values()).most_common(1)[0][0]
    return with_quantization(config, usual, plan)

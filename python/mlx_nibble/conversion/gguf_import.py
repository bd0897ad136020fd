"""GGUF file to MLX checkpoint folder."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble import lm
from mlx_nibble.conversion.gguf_architectures import Model
from mlx_nibble.conversion.gguf_config import generation_config, read_model
from mlx_nibble.conversion.gguf_latent import join_latent
from mlx_nibble.conversion.gguf_rows import architecture_of
from mlx_nibble.conversion.gguf_store import Stored, exact_dtype, store, unrotate
from mlx_nibble.conversion.gguf_tensors import assign_tensors
from mlx_nibble.conversion.gguf_tokenizer import build_tokenizer, tokenizer_config
from mlx_nibble.conversion.options import KEEP
from mlx_nibble.conversion.source import Source
from mlx_nibble.conversion.values import rounded
from mlx_nibble.formats import SCALE_DTYPES
from mlx_nibble.io.checkpoint import save_json, save_weights
from mlx_nibble.io.config import with_entries
from mlx_nibble.io.folder import new_folder
from mlx_nibble.io.gguf.parts import part_files, read_parts
from mlx_nibble.progress import Progress, silent


@dataclass(frozen=True)
class Kind:
    """The matrices of one ggml type.

    Attributes:
        count: Number of them.
        exact: Number of those whose values are as in the file.
        bits: Width in MLX; None for values in full precision.
        error: The largest relative error of a matrix, root mean square.
    """

    count: int
    exact: int
    bits: int | None
    error: float


@dataclass(frozen=True)
class ImportReport:
    """Facts of the folder that ``import_gguf`` wrote.

    Attributes:
        path: The folder.
        parameters: Number of the model's weights.
        nbytes: Bytes of all tensors.
        bits: Width of codes to the number of matrices with this width.
        dtype: Type of scales, biases and all that is not quantized.
        kinds: ggml's type to the facts of its matrices.
        errors: Path of each matrix that is not exact to its relative error.
    """

    path: Path
    parameters: int
    nbytes: int
    bits: dict[int, int]
    dtype: str
    kinds: dict[str, Kind]
    errors: dict[str, float]

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, with scales and biases counted."""
        return 8 * self.nbytes / self.parameters


def import_gguf(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str | None = None,
    progress: Progress = silent,
    keep: str = KEEP[0],
) -> ImportReport:
    """Convert a GGUF model to a folder that mlx-lm loads.

    Matrices whose type has groups of 32 keep their codes; see
    :mod:`mlx_nibble.conversion.gguf_store` for the others. All other tensors keep their
    values: their type is the first of float16, bfloat16 and float32 that is exact for
    all values and scales.

    Args:
        source: The GGUF file, or any part of a split one, beside the others.
        out: The folder to make; it must not exist.
        dtype: Type to round scales, biases and plain tensors to, one of
            ``SCALE_DTYPES``.
        progress: Function of the step, the bytes read so far, and all bytes.
        keep: One of ``KEEP``.

    Raises:
        ValueError: If the file is malformed or not supported, or ``out`` exists.
        OSError: If a file cannot be read or written.
    """
    for name, value, allowed in (
        ("dtype", dtype, (None, *SCALE_DTYPES)),
        ("keep", keep, KEEP),
    ):
        if value not in allowed:
            raise ValueError(
                f"[convert] {name} must be one of {allowed} but got {value!r}."
            )
    files = part_files(source)
    state = Source(files)
    file = read_parts(files)
    model = read_model(file, architecture_of(file))
    names = assign_tensors(file, model)
    tokenizer = build_tokenizer(file)
    total, done = sum(file.tensors[name].nbytes for name, _ in names), 0
    with new_folder(out, "convert") as folder:
        dtype = dtype or exact_dtype(file, names, keep)
        written = _Written(dtype)
        for name, place in names:
            stored = store(file, name, place, dtype, keep)
            if place.rotated is not None:
                stored = unrotate(stored, model.sizes[place.rotated])
            written.add(place.path, stored)
            done += file.tensors[name].nbytes
            progress("Importing", done, total)
        if "split kv, to join" in model.facts:
            written.arrays = join_latent(written.arrays)
        save_weights(folder, written.arrays)
        save_json(folder / "config.json", written.config(model))
        save_json(folder / "generation_config.json", generation_config(model.config))
        context = model.config["max_position_embeddings"]
        save_json(folder / "tokenizer_config.json", tokenizer_config(file, context))
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        lm.require_loadable(folder)
        state.require_unchanged()
    return ImportReport(
        path=Path(out),
        parameters=sum(int(np.prod(file.tensors[name].shape)) for name, _ in names),
        nbytes=sum(array.nbytes for array in written.arrays.values()),
        bits=dict(sorted(Counter(e["bits"] for e in written.entries.values()).items())),
        dtype=dtype,
        kinds=written.kinds,
        errors=written.errors,
    )


class _Written:
    """The parameters of the folder, and what became of each type.

    Attributes:
        arrays: Path of each parameter to its array.
        entries: Path of each quantized matrix to its entry in config.json.
        kinds: ggml's type to the facts of its matrices.
        errors: Path of each matrix that is not exact to its relative error.
    """

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.arrays: dict[str, mx.array] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.kinds: dict[str, Kind] = {}
        self.errors: dict[str, float] = {}

    def add(self, path: str, stored: Stored) -> None:
        """Add a tensor."""
        module = path.removesuffix(".weight")
        for key, array in stored.arrays.items():
            name = path if stored.settings is None else f"{module}.{key}"
            value = mx.array(array)
            self.arrays[name] = rounded(name, value, self.dtype)
        if stored.settings is not None:
            self.entries[module] = stored.settings
        if stored.arrays["weight"].ndim > 1:
            if stored.error:
                self.errors[module] = stored.error
            bits = stored.settings["bits"] if stored.settings else None
            known = self.kinds.get(stored.kind, Kind(0, 0, bits, 0.0))
            bits = known.bits if bits is None else bits
            self.kinds[stored.kind] = Kind(
                known.count + 1,
                known.exact + (stored.error == 0),
                bits,
                max(known.error, stored.error),
            )

    def config(self, model: Model) -> dict[str, Any]:
        """Return the contents of config.json."""
        config = {**model.config, "torch_dtype": self.dtype}
        return with_entries(config, self.entries) if self.entries else config

"""Folders that other tools packed to MLX checkpoint folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_nibble import lm
from mlx_nibble.conversion.card import write_card
from mlx_nibble.conversion.options import KEEP
from mlx_nibble.conversion.packed_run import METHODS, PackedRun
from mlx_nibble.conversion.source import Source
from mlx_nibble.conversion.values import require_all_finite
from mlx_nibble.io.checkpoint import (
    read_tensors,
    save_json,
    save_weights,
)
from mlx_nibble.io.companions import copy_companions
from mlx_nibble.io.config import read_config, with_entries
from mlx_nibble.io.folder import filling, reserved
from mlx_nibble.io.packed_floats import Floats
from mlx_nibble.io.packing import is_imported, packing
from mlx_nibble.io.shards import USUAL, weight_files
from mlx_nibble.progress import Progress, silent


@dataclass(frozen=True)
class PackedReport:
    """Facts of the folder that `import_packed` wrote.

    Attributes:
        path: The folder.
        parameters: Number of the model's weights.
        nbytes: Bytes of all tensors.
        bits: Width of codes to the number of matrices with this width.
        permuted: Number of act-order matrices whose producers were permuted.
        rounded_again: Number of act-order matrices that were rounded again, to 8 bits.
        errors: Path of each matrix in its nearest form to its relative error.
        dropped: Number of tensors left out that say how to round activations.
    """

    path: Path
    parameters: int
    nbytes: int
    bits: dict[int, int]
    permuted: int
    rounded_again: int
    errors: dict[str, float]
    dropped: int


def is_packed(folder: Path, op: str = "convert") -> bool:
    """Tell whether a folder is a checkpoint that `import_packed` reads.

    Args:
        folder: A model folder.
        op: Name of the command in messages.
    """
    if not (folder / "config.json").is_file():
        return False
    return is_imported(folder, read_config(folder, op), op)


def import_packed(
    source: Path,
    out: Path,
    progress: Progress = silent,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    keep: str = KEEP[0],
) -> PackedReport:
    """Convert a packed checkpoint to a folder that mlx-lm loads.

    Codes and scales stay. A bias is exact if the zero is a power of two, and otherwise
    rounded once. Groups that MLX lacks are divided, by repeating their scales.
    Act-order scatters the inputs of a group. For down projections the layers that make
    the inputs are permuted; other matrices are rounded again. Floats and tables that
    no mode of MLX holds get the nearest form
    (:mod:`mlx_nibble.conversion.packed_forms`).

    Args:
        source: A folder with `config.json` and safetensors.
        out: The folder to make; it must not exist.
        dtype: Type to round scales, biases and plain tensors to, one of
            ``SCALE_DTYPES``. Default: the type of the scales; plain tensors keep
            theirs. In float32 no bias of scales in half precision is rounded.
        trust_remote_code: Whether the source's Python code may run.
        keep: One of ``KEEP``, for matrices that no form of MLX holds exactly.

    Raises:
        ValueError: If the checkpoint is malformed or not supported, or `out` exists.
        OSError: If a file cannot be read or written.
    """
    with reserved(out, "convert") as place:
        config = read_config(source, "convert")
        settings = packing(source, config, "convert")
        assert settings is not None
        layout = METHODS[settings["quant_method"]](settings)
        lm.require_family(config)
        files = weight_files_of(source)
        state = Source([*files, source / "config.json"])
        run = PackedRun(layout, read_tensors(files), dtype, keep)
        run.read(progress)
        arrays = run.arrays()
        require_all_finite(dict(arrays))
        with filling(place) as folder:
            save_weights(folder, arrays)
            config = _with_entries(config, run.entries())
            if isinstance(config.get("text_config"), dict):
                config["text_config"].pop("quantization_config", None)
            if dtype is not None:
                config["torch_dtype"] = dtype
            copy_companions(source, folder)
            write_card(folder, place.path.name, source)
            save_json(folder / "config.json", config)
            lm.require_loadable(folder, trust_remote_code)
            state.require_unchanged()
    widths = [q.bits for q in run.done.values()]
    quantized = sum(
        q.size if isinstance(q, Floats) else q.codes.size for q in run.done.values()
    )
    return PackedReport(
        place.path,
        quantized + sum(a.size for a in run.plain.values()),
        sum(a.nbytes for a in arrays.values()),
        {b: widths.count(b) for b in sorted(set(widths))},
        run.permuted,
        run.rounded_again,
        run.errors,
        run.dropped,
    )


def _with_entries(
    config: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a configuration with the formats of its matrices, as mlx-lm reads it."""
    if entries:
        return with_entries(config, entries)
    return {k: v for k, v in config.items() if k != "quantization_config"}


def weight_files_of(source: Path) -> list[Path]:
    """Return the complete weights; some tools name one file after the method."""
    named = any(file.match(USUAL) for file in source.iterdir())
    return weight_files(source, "convert", USUAL if named else "*.safetensors")

"""Folders that other tools packed to MLX checkpoint folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble import lm
from mlx_nibble.conversion.card import write_card
from mlx_nibble.conversion.options import KEEP
from mlx_nibble.conversion.packed_autoround import auto_round
from mlx_nibble.conversion.packed_awq import AWQ
from mlx_nibble.conversion.packed_bitsandbytes import BitsAndBytes
from mlx_nibble.conversion.packed_compressed import CompressedTensors
from mlx_nibble.conversion.packed_experts import stack_experts
from mlx_nibble.conversion.packed_floats import FP8, ROUNDING, ModelOpt
from mlx_nibble.conversion.packed_forms import formed
from mlx_nibble.conversion.packed_gptq import GPTQ
from mlx_nibble.conversion.packed_hqq import HQQ
from mlx_nibble.conversion.packed_layouts import Layout, Parts
from mlx_nibble.conversion.packed_strangers import require_plain
from mlx_nibble.conversion.source import Source
from mlx_nibble.conversion.values import require_all_finite, require_unclipped, rounded
from mlx_nibble.formats import SCALE_DTYPES, Format, Quantized
from mlx_nibble.io.checkpoint import (
    dtype_name,
    quantized_tensors,
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
from mlx_nibble.quantize.search import search

METHODS: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
    "awq": AWQ,
    "gptq": GPTQ,
    "compressed-tensors": CompressedTensors,
    "fp8": FP8,
    "fbgemm_fp8": FP8,
    "modelopt": ModelOpt,
    "bitsandbytes": BitsAndBytes,
    "hqq": HQQ,
    "auto-round": auto_round,
}
"""`quant_method` of a checkpoint to a function from its settings to its layout."""

# A group of MLX's format is a run of consecutive inputs. Where act-order scattered a
# group and no other layer can undo that, the matrix is rounded again. This format is so
# fine that the second rounding does not matter.
_AGAIN_BITS, _AGAIN_GROUP = 8, 32
# The down projection's inputs are these layers' outputs, one to one.
_PRODUCERS = {"down_proj": ("gate_proj", "up_proj"), "w2": ("w1", "w3")}
# MLX multiplies nvfp4's values by global_scale / 2688, which is 448 * 6.
_NVFP4_RANGE = 2688


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


def is_packed(folder: Path) -> bool:
    """Tell whether a folder is a checkpoint that `import_packed` reads."""
    if not (folder / "config.json").is_file():
        return False
    return is_imported(folder, read_config(folder, "convert"), "convert")


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
        files = _weight_files(source)
        state = Source([*files, source / "config.json"])
        run = _Import(layout, read_tensors(files), dtype, keep)
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


def _weight_files(source: Path) -> list[Path]:
    """Return the complete weights; some tools name one file after the method."""
    named = any(file.match(USUAL) for file in source.iterdir())
    return weight_files(source, "convert", USUAL if named else "*.safetensors")


class _Import:
    """One import.

    Attributes:
        done: Path to each converted matrix.
        plain: Tensors that stay as they are, and matrices of values.
        factors: Path of stacked experts in nvfp4 to the factor of each.
        errors: Path of each matrix in its nearest form to its relative error.
        dropped: Number of tensors left out that say how to round activations.
    """

    def __init__(
        self,
        layout: Layout,
        tensors: dict[str, mx.array],
        dtype: str | None,
        keep: str,
    ):
        self.layout, self.tensors, self.keep = layout, tensors, keep
        self.paths = layout.paths(tensors)
        if not self.paths:
            raise ValueError("[import] packed weights are required but there are none.")
        parts = {f"{p}.{part}" for p in self.paths for part in layout.parts(p)}
        plain = {k: v for k, v in tensors.items() if k not in parts}
        require_plain(plain, self.paths)
        self.plain = {k: rounded(k, v, dtype) for k, v in plain.items()}
        self.dtype = dtype or self._dtype()
        self.done: dict[str, Quantized | Floats] = {}
        self.factors: dict[str, np.ndarray] = {}
        self.errors: dict[str, float] = {}
        self.permuted = self.rounded_again = 0
        self.dropped = sum(
            name.endswith(tuple(f".{end}" for end in ROUNDING))
            for name in tensors.keys() & parts
        )

    def _dtype(self) -> str:
        """Return the type of all affine scales; float32 if they differ.

        Without such scales it is the type of the most plain tensors.
        """
        named = ((path, self.layout.scales(path)) for path in self.paths)
        names = [f"{path}.{scales}" for path, scales in named if scales is not None]
        kinds = {dtype_name(self.tensors[n].dtype) for n in names if n in self.tensors}
        if not names:
            plain = [dtype_name(value.dtype) for value in self.plain.values()]
            usual = Counter(kind for kind in plain if kind in SCALE_DTYPES)
            kinds = {kind for kind, _ in usual.most_common(1)}
        (kind, *others) = kinds or {"float32"}
        return "float32" if others or kind not in SCALE_DTYPES else kind

    def read(self, progress: Progress) -> None:
        """Convert all matrices, and settle the order of their inputs."""
        orders: dict[str, np.ndarray] = {}
        for i, path in enumerate(self.paths):
            try:
                found = self.layout.read(Parts(self.tensors, path))
                made = formed(path, found, self.dtype, self.keep)
            except ValueError as error:
                if str(error).startswith("["):
                    raise
                raise ValueError(f"[import] {path} {error}.") from error
            if isinstance(made.matrix, np.ndarray):
                name, values = f"{path}.weight", mx.array(made.matrix)
                self.plain[name] = rounded(name, values, self.dtype)
            else:
                self.done[path] = made.matrix
            if made.order is not None:
                orders[path] = made.order
            if made.error:
                self.errors[path] = made.error
            progress("Converting", i + 1, len(self.paths))
        for path, order in orders.items():
            self._settle(path, order)
        self.done, self.factors = stack_experts(self.done)

    def _settle(self, path: str, order: np.ndarray) -> None:
        """Permute the outputs that are a matrix's inputs, or round it again."""
        prefix, _, name = path.rpartition(".")
        producers = {p: self.done.get(p) for p in _producers(prefix, name)}
        affine = {p: q for p, q in producers.items() if isinstance(q, Quantized)}
        if affine and affine.keys() == producers.keys():
            for producer, q in affine.items():
                self.done[producer] = Quantized(
                    q.codes[order], q.scales[order], q.biases[order], q.bits
                )
                bias = f"{producer}.bias"
                if bias in self.plain:
                    self.plain[bias] = self.plain[bias][mx.array(order)]
            self.permuted += 1
            return
        own = self.done[path]
        assert isinstance(own, Quantized)
        weight = np.empty(own.codes.shape, np.float32)
        weight[:, order] = own.dequantize()
        self.done[path] = search(weight, Format(_AGAIN_BITS, _AGAIN_GROUP, self.dtype))
        self.rounded_again += 1

    def arrays(self) -> dict[str, mx.array]:
        """Return all tensors as MLX stores them."""
        arrays = dict(self.plain)
        for path, q in self.done.items():
            if isinstance(q, Floats):
                arrays[f"{path}.weight"] = mx.array(q.words)
                arrays[f"{path}.scales"] = mx.array(q.scales)
                continue
            require_unclipped(path, q, self.dtype)
            arrays |= quantized_tensors(path, q.words(), q.scales, q.biases, self.dtype)
        for path, factors in self.factors.items():
            scales = (factors * _NVFP4_RANGE).astype(np.float32)
            arrays[f"{path}.global_scale"] = mx.array(scales)
        return arrays

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return the entry of each matrix in config.json."""
        entries: dict[str, dict[str, Any]] = {}
        for path, q in self.done.items():
            affine = isinstance(q, Quantized)
            form = Format(q.bits, q.group_size, self.dtype) if affine else q.form
            more = {"global_scale": True} if path in self.factors else {}
            entries[path] = {**form.config, **more}
        return entries


def _producers(prefix: str, name: str) -> list[str]:
    """Return the paths of the layers whose outputs are a matrix's inputs."""
    return [f"{prefix}.{producer}" for producer in _PRODUCERS.get(name, ())]

"""AutoAWQ, GPTQ and compressed-tensors folders to MLX checkpoint folders."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.conversion.packed_layouts import METHODS, Parts
from mlx_nibble.formats import GROUP_SIZES, Format, Quantized
from mlx_nibble.io.checkpoint import (
    dtype_name,
    quantized_tensors,
    read_tensors,
    save_json,
    save_weights,
)
from mlx_nibble.io.config import read_config, with_quantization
from mlx_nibble.io.folder import new_folder
from mlx_nibble.progress import Progress, silent
from mlx_nibble.quantize.search import search

# A group of MLX's format is a run of consecutive inputs. Where act-order scattered a
# group and no other layer can undo that, the matrix is rounded again. This format is so
# fine that the second rounding does not matter.
_AGAIN_BITS, _AGAIN_GROUP = 8, 32
# The down projection's inputs are these layers' outputs, one to one.
_PRODUCERS = {"down_proj": ("gate_proj", "up_proj"), "w2": ("w1", "w3")}
# Experts stored one by one, and mlx-lm's names of the stacked experts.
_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)")
_STACKED = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
# Files beside the weights that the new folder needs too.
_COMPANIONS = ("tokenizer*", "*.py", "*.jinja", "vocab*", "merges.txt")
_COMPANIONS += ("generation_config.json", "special_tokens_map.json")


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
    """

    path: Path
    parameters: int
    nbytes: int
    bits: dict[int, int]
    permuted: int
    rounded_again: int


def is_packed(folder: Path) -> bool:
    """Tell whether a folder is a checkpoint that `import_packed` reads."""
    if not (folder / "config.json").is_file():
        return False
    config = read_config(folder, "convert")
    return (config.get("quantization_config") or {}).get("quant_method") in METHODS


def import_packed(
    source: Path,
    out: Path,
    progress: Progress = silent,
) -> PackedReport:
    """Convert a packed checkpoint to a folder that mlx-lm loads.

    Codes and scales stay. A bias is exact if the zero is a power of two, and otherwise
    rounded once. Act-order scatters the inputs of a group. For down projections the
    layers that make the inputs are permuted; other matrices are rounded again.

    Args:
        source: A folder with `config.json` and safetensors.
        out: The folder to make; it must not exist.
        progress: Function of the current work, matrices done and all matrices.

    Raises:
        ValueError: If the checkpoint is malformed or not supported, or `out` exists.
        OSError: If a file cannot be read or written.
    """
    config = read_config(source, "convert")
    run = _Import(config["quantization_config"], _load(source))
    run.read(progress)
    with new_folder(out, "convert") as folder:
        arrays = run.arrays()
        save_weights(folder, arrays)
        config = with_quantization(config, run.usual(), run.plan())
        save_json(folder / "config.json", config)
        for pattern in _COMPANIONS:
            for file in source.glob(pattern):
                shutil.copy(file, folder)
    widths = [q.bits for q in run.done.values()]
    quantized = sum(q.codes.size for q in run.done.values())
    return PackedReport(
        out,
        quantized + sum(a.size for a in run.plain.values()),
        sum(a.nbytes for a in arrays.values()),
        {b: widths.count(b) for b in sorted(set(widths))},
        run.permuted,
        run.rounded_again,
    )


def _load(source: Path) -> dict[str, mx.array]:
    tensors = read_tensors(sorted(source.glob("*.safetensors")))
    if not tensors:
        raise ValueError(
            f"[import] safetensors are required but {str(source)!r} has none."
        )
    return tensors


class _Import:
    """One import.

    Attributes:
        done: Path to each converted matrix.
        plain: Tensors that stay as they are.
    """

    def __init__(self, settings: dict[str, Any], tensors: dict[str, mx.array]):
        method = settings["quant_method"]
        self.layout = METHODS[method](settings)
        self.tensors = tensors
        mark = f".{self.layout.codes}"
        self.paths = [k.removesuffix(mark) for k in tensors if k.endswith(mark)]
        if not self.paths:
            raise ValueError(f"[import] {method} weights are required but got none.")
        first = f"{self.paths[0]}.{self.layout.scales}"
        if first not in tensors:
            raise ValueError(f"[import] {first} is required but missing.")
        scales = tensors[first]
        self.dtype = dtype_name(scales.dtype)
        parts = {f"{p}.{part}" for p in self.paths for part in self.layout.parts}
        self.plain = {k: v for k, v in tensors.items() if k not in parts}
        self.done: dict[str, Quantized] = {}
        self.permuted = self.rounded_again = 0

    def read(self, progress: Progress) -> None:
        """Convert all matrices, and settle the order of their inputs."""
        orders: dict[str, np.ndarray] = {}
        for i, path in enumerate(self.paths):
            parts = Parts(self.tensors, path)
            self.done[path], order = self.layout.read(parts, self.dtype)
            if order is not None:
                orders[path] = order
            progress("Converting", i + 1, len(self.paths))
        for path, order in orders.items():
            self._settle(path, order)
        self._stack_experts()

    def _settle(self, path: str, order: np.ndarray) -> None:
        """Permute the outputs that are a matrix's inputs, or round it again."""
        prefix, _, name = path.rpartition(".")
        producers = [f"{prefix}.{p}" for p in _PRODUCERS.get(name, ())]
        if producers and all(p in self.done for p in producers):
            for producer in producers:
                q = self.done[producer]
                self.done[producer] = Quantized(
                    q.codes[order], q.scales[order], q.biases[order], q.bits
                )
                bias = f"{producer}.bias"
                if bias in self.plain:
                    self.plain[bias] = self.plain[bias][mx.array(order)]
            self.permuted += 1
            return
        weight = np.empty(self.done[path].codes.shape, np.float32)
        weight[:, order] = self.done[path].dequantize()
        self.done[path] = search(weight, Format(_AGAIN_BITS, _AGAIN_GROUP, self.dtype))
        self.rounded_again += 1

    def _stack_experts(self) -> None:
        """Stack experts that are stored one by one, as mlx-lm stores them."""
        experts: dict[str, dict[int, str]] = {}
        for path in self.done:
            if found := _EXPERT.fullmatch(path):
                block, number, name = found.groups()
                stacked = f"{block}.switch_mlp.{_STACKED.get(name, name)}"
                experts.setdefault(stacked, {})[int(number)] = path
        for stacked, by_number in experts.items():
            parts = [self.done.pop(path) for _, path in sorted(by_number.items())]
            kinds = {(q.bits, q.codes.shape, q.scales.shape) for q in parts}
            if sorted(by_number) != list(range(len(parts))) or len(kinds) != 1:
                raise ValueError(
                    f"[import] the experts of {stacked} must be numbered from 0 and "
                    f"be alike but are {sorted(by_number)}, of {len(kinds)} shapes."
                )
            self.done[stacked] = Quantized(
                np.stack([q.codes for q in parts]),
                np.stack([q.scales for q in parts]),
                np.stack([q.biases for q in parts]),
                parts[0].bits,
            )

    def arrays(self) -> dict[str, mx.array]:
        """Return all tensors as MLX stores them."""
        arrays = dict(self.plain)
        for path, q in self.done.items():
            if q.group_size not in GROUP_SIZES:
                raise ValueError(
                    f"[import] groups must be of {GROUP_SIZES} inputs but those of "
                    f"{path} have {q.group_size}."
                )
            arrays |= quantized_tensors(path, q.words(), q.scales, q.biases, self.dtype)
        return arrays

    def plan(self) -> dict[str, Format]:
        """Return the format of each converted matrix."""
        return {
            path: Format(q.bits, q.group_size, self.dtype)
            for path, q in self.done.items()
        }

    def usual(self) -> Format:
        """Return the format that most matrices have."""
        kinds = [(q.group_size, q.bits) for q in self.done.values()]
        group_size, bits = max(set(kinds), key=kinds.count)
        return Format(bits, group_size, self.dtype)

"""AutoAWQ, GPTQ and compressed-tensors folders to MLX checkpoint folders."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.formats import GROUP_SIZES, Format, Quantized
from mlx_nibble.io.checkpoint import (
    read_config,
    read_tensors,
    save_json,
    save_weights,
)
from mlx_nibble.io.folder import new_folder
from mlx_nibble.io.packed import from_awq, from_compressed_tensors, from_gptq
from mlx_nibble.progress import Progress, silent
from mlx_nibble.quantize.search import search

METHODS = ("awq", "gptq", "compressed-tensors")
# MLX's format holds groups of consecutive inputs only. What act-order scattered and
# no other layer can undo is rounded again, so finely that it does not matter.
_AGAIN_BITS, _AGAIN_GROUP = 8, 32
# The down projection's inputs are these layers' outputs, one to one.
_PRODUCERS = {"down_proj": ("gate_proj", "up_proj"), "w2": ("w1", "w3")}
# Experts stored one by one, and what mlx-lm calls all of them together.
_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)")
_STACKED = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_CT_PARTS = ("packed", "scale", "zero_point", "shape", "g_idx")


@dataclass(frozen=True)
class PackedReport:
    """What `import_packed` wrote.

    Attributes:
        path: The folder.
        parameters: Weights, as the model counts them.
        nbytes: Bytes of all tensors.
        bits: Bits of the quantized matrices to how many have them.
        permuted: Matrices of act-order whose inputs the layers before now give in
            the order of the groups.
        rounded_again: Matrices of act-order that had to be rounded again, to 8 bits.
    """

    path: Path
    parameters: int
    nbytes: int
    bits: dict[int, int]
    permuted: int
    rounded_again: int


def is_packed(folder: Path) -> bool:
    """Tell whether a folder holds a checkpoint that `import_packed` reads."""
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

    Codes and scales stay. A bias is exact where the zero is a power of two, and
    otherwise rounded once. Inputs that act-order scattered over the groups are
    permuted in the layers that make them, where one-to-one (down projections).

    Args:
        source: A folder with `config.json` and safetensors.
        out: The folder to make; it must not exist.
        progress: Called with what is being done, matrices done and all of them.

    Raises:
        ValueError: If the checkpoint is malformed or not supported, or `out` exists.
        OSError: If a file cannot be read or written.
    """
    config = read_config(source, "convert")
    run = _Import(config, _load(source))
    run.read(progress)
    with new_folder(out, "convert") as folder:
        arrays = run.arrays()
        save_weights(folder, arrays)
        entry = run.quantization_entry()
        config |= {"quantization": entry, "quantization_config": entry}
        save_json(folder / "config.json", config)
        for pattern in ("tokenizer*", "*.py", "*.jinja", "vocab*", "merges.txt"):
            for file in source.glob(pattern):
                shutil.copy(file, folder)
        for name in ("generation_config.json", "special_tokens_map.json"):
            if (source / name).exists():
                shutil.copy(source / name, folder)
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
            f"[import] {str(source)!r} must hold safetensors but does not."
        )
    return tensors


class _Import:
    def __init__(self, config: dict[str, Any], tensors: dict[str, mx.array]):
        self.settings = config["quantization_config"]
        self.method = self.settings["quant_method"]
        self.bits, self.zero_offset = self._layout()
        mark = ".weight_packed" if self.method == "compressed-tensors" else ".qweight"
        self.paths = [k.removesuffix(mark) for k in tensors if k.endswith(mark)]
        self.tensors = tensors
        self.dtype = self._scale_dtype()
        parts = self._part_names()
        self.plain = {k: v for k, v in tensors.items() if k not in parts}
        self.done: dict[str, Quantized] = {}
        self.permuted = self.rounded_again = 0

    def _layout(self) -> tuple[int, int]:
        s = self.settings
        if self.method == "awq":
            if s.get("version", "gemm") != "gemm" or s.get("bits", 4) != 4:
                raise ValueError(
                    "[import] an AWQ checkpoint must be of version gemm and 4 bits but "
                    f"is of {s.get('version')} and {s.get('bits')}."
                )
            return 4, 0
        if self.method == "gptq":
            return int(s["bits"]), 0 if s.get("checkpoint_format") == "gptq_v2" else 1
        groups = list(s.get("config_groups", {}).values())
        weights = groups[0].get("weights", {}) if len(groups) == 1 else {}
        if s.get("format") != "pack-quantized" or weights.get("type") != "int":
            raise ValueError(
                "[import] a compressed-tensors checkpoint must be pack-quantized with "
                f"one group of int weights but is {s.get('format')!r} with "
                f"{len(groups)}."
            )
        return int(weights["num_bits"]), 0

    def _part_names(self) -> set[str]:
        if self.method == "compressed-tensors":
            return {f"{p}.weight_{part}" for p in self.paths for part in _CT_PARTS}
        return {f"{p}.{part}" for p in self.paths for part in _PARTS}

    def _scale_dtype(self) -> str:
        if not self.paths:
            raise ValueError(f"[import] no {self.method} weight was found.")
        name = "weight_scale" if self.method == "compressed-tensors" else "scales"
        return str(self.tensors[f"{self.paths[0]}.{name}"].dtype).rpartition(".")[2]

    def read(self, progress: Progress) -> None:
        """Convert all matrices, and settle the order of their inputs."""
        orders: dict[str, np.ndarray] = {}
        for i, path in enumerate(self.paths):
            self.done[path], order = self._read(path)
            if order is not None:
                orders[path] = order
            progress("Converting", i + 1, len(self.paths))
        for path, order in orders.items():
            self._settle(path, order)
        self._stack_experts()

    def _part(self, path: str, name: str) -> np.ndarray | None:
        tensor = self.tensors.get(f"{path}.{name}")
        if tensor is None:
            return None
        if mx.issubdtype(tensor.dtype, mx.floating):
            tensor = tensor.astype(mx.float32)
        return np.array(tensor)

    def _need(self, path: str, name: str) -> np.ndarray:
        part = self._part(path, name)
        if part is None:
            raise ValueError(f"[import] {path}.{name} is required but missing.")
        return part

    def _read(self, path: str) -> tuple[Quantized, np.ndarray | None]:
        if self.method == "compressed-tensors":
            return from_compressed_tensors(
                self._need(path, "weight_packed"),
                self._need(path, "weight_scale"),
                self._part(path, "weight_zero_point"),
                self._part(path, "weight_g_idx"),
                self.bits,
                self.dtype,
            )
        codes, zeros = self._need(path, "qweight"), self._need(path, "qzeros")
        scales = self._need(path, "scales")
        if self.method == "awq":
            return from_awq(codes, zeros, scales, self.dtype), None
        return from_gptq(
            codes,
            zeros,
            scales,
            self._part(path, "g_idx"),
            self.bits,
            self.dtype,
            zero_offset=self.zero_offset,
        )

    def _settle(self, path: str, order: np.ndarray) -> None:
        """Have the inputs of a matrix come in `order`, or round it again."""
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
        """Have experts stored one by one as mlx-lm has them, in one array."""
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
                    f"be alike but are {sorted(by_number)}, of {len(kinds)} kinds."
                )
            self.done[stacked] = Quantized(
                np.stack([q.codes for q in parts]),
                np.stack([q.scales for q in parts]),
                np.stack([q.biases for q in parts]),
                parts[0].bits,
            )

    def arrays(self) -> dict[str, mx.array]:
        """All tensors as MLX stores them."""
        arrays = dict(self.plain)
        dtype = getattr(mx, self.dtype)
        for path, q in self.done.items():
            if q.group_size not in GROUP_SIZES:
                raise ValueError(
                    f"[import] groups must be of {GROUP_SIZES} inputs but those of "
                    f"{path} have {q.group_size}."
                )
            arrays[f"{path}.weight"] = mx.array(q.words())
            arrays[f"{path}.scales"] = mx.array(q.scales).astype(dtype)
            arrays[f"{path}.biases"] = mx.array(q.biases).astype(dtype)
        return arrays

    def quantization_entry(self) -> dict[str, Any]:
        """The `quantization` of config.json."""
        kinds = [(q.group_size, q.bits) for q in self.done.values()]
        usual = max(set(kinds), key=kinds.count)

        def entry(kind: tuple[int, int]) -> dict[str, Any]:
            return Format(kind[1], kind[0]).config

        own = zip(self.done, kinds, strict=True)
        return entry(usual) | {p: entry(k) for p, k in own if k != usual}

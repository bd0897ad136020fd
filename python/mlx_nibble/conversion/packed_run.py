"""One import of a packed checkpoint: its matrices in MLX's forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.conversion.packed_autoround import auto_round
from mlx_nibble.conversion.packed_awq import AWQ
from mlx_nibble.conversion.packed_bitsandbytes import BitsAndBytes
from mlx_nibble.conversion.packed_compressed import CompressedTensors
from mlx_nibble.conversion.packed_experts import stack_experts
from mlx_nibble.conversion.packed_floats import FP8, ROUNDING, ModelOpt
from mlx_nibble.conversion.packed_forms import Formed, formed
from mlx_nibble.conversion.packed_gptq import GPTQ
from mlx_nibble.conversion.packed_hqq import HQQ
from mlx_nibble.conversion.packed_layouts import Layout, Parts
from mlx_nibble.conversion.packed_strangers import require_plain
from mlx_nibble.conversion.values import require_unclipped, rounded
from mlx_nibble.formats import SCALE_DTYPES, Format, Quantized
from mlx_nibble.io.checkpoint import dtype_name, quantized_tensors
from mlx_nibble.io.packed_floats import Floats
from mlx_nibble.progress import Progress
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
AGAIN_BITS, AGAIN_GROUP = 8, 32
# The down projection's inputs are these layers' outputs, one to one.
_PRODUCERS = {"down_proj": ("gate_proj", "up_proj"), "w2": ("w1", "w3")}
# MLX multiplies nvfp4's values by global_scale / 2688, which is 448 * 6.
_NVFP4_RANGE = 2688


class PackedRun:
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
        """Check which tensors there are; read none."""
        self.layout, self.tensors, self.keep = layout, tensors, keep
        self.paths = layout.paths(tensors)
        parts = {f"{p}.{part}" for p in self.paths for part in layout.parts(p)}
        plain = {k: v for k, v in tensors.items() if k not in parts}
        require_plain(plain, self.paths)
        if not self.paths:
            raise ValueError("[import] packed weights are required but there are none.")
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
            made = self.form(path)
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

    def form(self, path: str) -> Formed:
        """Return the form of a matrix.

        Raises:
            ValueError: If the matrix is malformed or not supported.
        """
        try:
            found = self.layout.read(Parts(self.tensors, path))
            return formed(path, found, self.dtype, self.keep)
        except ValueError as error:
            if str(error).startswith("["):
                raise
            raise ValueError(f"[import] {path} {error}.") from error

    def _settle(self, path: str, order: np.ndarray) -> None:
        """Permute the outputs that are a matrix's inputs, or round it again."""
        makers = {p: self.done.get(p) for p in producers(path)}
        affine = {p: q for p, q in makers.items() if isinstance(q, Quantized)}
        if affine and affine.keys() == makers.keys():
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
        self.done[path] = search(weight, Format(AGAIN_BITS, AGAIN_GROUP, self.dtype))
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


def producers(path: str) -> list[str]:
    """Return the paths of the layers whose outputs are a matrix's inputs."""
    prefix, _, name = path.rpartition(".")
    return [f"{prefix}.{producer}" for producer in _PRODUCERS.get(name, ())]

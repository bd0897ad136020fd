"""The variables that are trained, and the parameters that they stand for.

All variables are in units of one level of their grid, so that one learning rate fits
all. With m = (2^bits - 1) / 2, the code at the middle of a grid:

    scale = scale_0 (1 + stretch / m)
    bias  = bias_0 + scale_0 (shift - stretch)

A stretch moves the ends of a grid and a shift its middle. A code is the nearest integer
of its variable; the gradient passes through the rounding as if it were not there
(Bengio, Leonard, Courville 2013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.formats import pack

Arrays = dict[str, mx.array]

# A code begins at the place of its weight between two levels, but at most this far from
# the code that GPTQ chose: on the other side of 0.5 is another code.
_FARTHEST = 0.45
# A norm's weight scales all outputs of a row: it moves by this share of itself where a
# code moves by one level.
_NORM_SHARE = 1 / 8


@dataclass(frozen=True)
class TrainedMatrix:
    """A quantized matrix of the start, with scales and biases in float32.

    Attributes:
        path: Path of the module.
        words: Packed codes.
        scales: Scales of the groups.
        biases: Biases of the groups.
        bits: Width of a code.
        group_size: Weights of a group.
        stored: Type of scales and biases in the checkpoint.
        symmetric: True if each bias follows from its scale, before and after.
    """

    path: str
    words: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int
    stored: mx.Dtype
    symmetric: bool

    @property
    def middle(self) -> float:
        """The middle of the codes."""
        return (2**self.bits - 1) / 2

    def codes(self) -> mx.array:
        """Return the codes as float32, `[..., N, K]`."""
        one = mx.ones_like(self.scales)
        return mx.dequantize(
            self.words, one, mx.zeros_like(one), self.group_size, self.bits
        )

    def grid(self, variables: Mapping[str, mx.array]) -> tuple[mx.array, mx.array]:
        """Return scales and biases, float32."""
        stretch = variables[f"{self.path}.stretch"]
        scales = self.scales * (1 + stretch / self.middle)
        if self.symmetric:
            return scales, -(2.0 ** (self.bits - 1)) * scales
        shift = variables[f"{self.path}.shift"]
        return scales, self.biases + self.scales * (shift - stretch)


def find_matrices(model: nn.Module) -> list[TrainedMatrix]:
    """Return the affine matrices of a quantized model, each once."""
    found: dict[int, TrainedMatrix] = {}
    for path, module in model.named_modules():
        if id(module) in found or "scales" not in module or "biases" not in module:
            continue
        scales = module["scales"].astype(mx.float32)
        biases = module["biases"].astype(mx.float32)
        follows = mx.array_equal(biases, -(2.0 ** (module.bits - 1)) * scales).item()
        found[id(module)] = TrainedMatrix(
            path,
            module["weight"],
            scales,
            biases,
            module.bits,
            module.group_size,
            module["scales"].dtype,
            bool(follows),
        )
    return list(found.values())


def mean_width(matrices: Sequence[TrainedMatrix]) -> float:
    """Return the mean width of the codes of matrices, in bits."""
    bits = sum(32 * m.words.size for m in matrices)
    return bits / sum(m.scales.size * m.group_size for m in matrices)


class Variables:
    """The variables of a model.

    Attributes:
        matrices: The matrices that are trained.
        start: The variables before the first step, by name.
    """

    def __init__(
        self,
        matrices: list[TrainedMatrix],
        norms: Mapping[str, mx.array],
        originals: Mapping[str, mx.array] | None,
    ):
        """Prepare the variables.

        Args:
            matrices: The matrices to train.
            norms: Vectors to train, by path.
            originals: Unquantized weights, by path, if codes are trained.
        """
        self.matrices = matrices
        self._norms = {path: v.astype(mx.float32) for path, v in norms.items()}
        self._stored = {path: v.dtype for path, v in norms.items()}
        self._codes = originals is not None
        self.start: Arrays = {}
        for m in matrices:
            self.start[f"{m.path}.stretch"] = mx.zeros_like(m.scales)
            if not m.symmetric:
                self.start[f"{m.path}.shift"] = mx.zeros_like(m.biases)
            if originals is not None:
                self.start[f"{m.path}.code"] = _place(m, originals)
        for path, vector in self._norms.items():
            self.start[path] = mx.zeros_like(vector)

    def parameters(self, variables: Mapping[str, mx.array]) -> Arrays:
        """Return the parameters of the model that is trained, by path."""
        result = {
            path: vector * (1 + _NORM_SHARE * variables[path])
            for path, vector in self._norms.items()
        }
        for m in self.matrices:
            scales, biases = m.grid(variables)
            if not self._codes:
                result[f"{m.path}.scales"] = scales
                result[f"{m.path}.biases"] = biases
                continue
            codes = _rounded(variables[f"{m.path}.code"], m.bits)
            groups = mx.unflatten(codes, -1, (-1, m.group_size))
            dense = groups * scales[..., None] + biases[..., None]
            result[f"{m.path}.weight"] = mx.flatten(dense, -2, -1)
        return result

    def stored(self, variables: Mapping[str, mx.array]) -> Arrays:
        """Return the changed tensors of the checkpoint, in their stored types."""
        result = {
            path: (vector * (1 + _NORM_SHARE * variables[path])).astype(
                self._stored[path]
            )
            for path, vector in self._norms.items()
        }
        for m in self.matrices:
            scales, biases = m.grid(variables)
            scales = scales.astype(m.stored)
            if m.symmetric:  # exact in every type
                biases = -(2.0 ** (m.bits - 1)) * scales.astype(mx.float32)
            result[f"{m.path}.scales"] = scales
            result[f"{m.path}.biases"] = biases.astype(m.stored)
            if self._codes:
                codes = _rounded(variables[f"{m.path}.code"], m.bits)
                packed = pack(np.array(codes).astype(np.uint8), m.bits)
                result[f"{m.path}.weight"] = mx.array(packed)
        return result

    def changes(
        self, variables: Mapping[str, mx.array]
    ) -> list[dict[str, float | str]]:
        """Return how far training moved each matrix.

        Each row has the path, the share of codes that changed, and the root of the mean
        square of stretches and shifts, in levels.
        """
        rows: list[dict[str, float | str]] = []
        for m in self.matrices:
            row: dict[str, float | str] = {"path": m.path}
            for kind in ("stretch", "shift"):
                moved = variables.get(f"{m.path}.{kind}")
                if moved is not None:
                    row[kind] = float(np.sqrt(np.mean(np.square(moved))))
            if self._codes:
                codes = _rounded(variables[f"{m.path}.code"], m.bits)
                row["codes"] = float(np.mean(np.array(codes != m.codes())))
            rows.append(row)
        return rows


def _place(m: TrainedMatrix, originals: Mapping[str, mx.array]) -> mx.array:
    """Return where a matrix's codes begin."""
    codes = m.codes()
    original = originals.get(f"{m.path}.weight")
    if original is None or original.shape != codes.shape:
        return codes
    groups = mx.unflatten(original.astype(mx.float32), -1, (-1, m.group_size))
    scales = mx.where(m.scales == 0, 1, m.scales)
    exact = (groups - m.biases[..., None]) / scales[..., None]
    exact = mx.flatten(exact, -2, -1)
    return mx.clip(exact, codes - _FARTHEST, codes + _FARTHEST)


def _rounded(code: mx.array, bits: int) -> mx.array:
    inside = mx.clip(code, 0, 2**bits - 1)
    return inside + mx.stop_gradient(mx.round(inside) - inside)


def find_norms(parameters: Mapping[str, mx.array], matrices: list) -> Arrays:
    """Return the vectors outside the matrices: the weights of norms, and addends."""
    owners = {m.path for m in matrices}
    return {
        path: value
        for path, value in parameters.items()
        if value.ndim == 1
        and mx.issubdtype(value.dtype, mx.floating)
        and path.rpartition(".")[0] not in owners
    }

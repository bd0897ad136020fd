"""The report of :func:`mlx_nibble.accelerate`, which can restore the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble import _native
from mlx_nibble.acceleration.left import Left
from mlx_nibble.acceleration.rebind import original
from mlx_nibble.acceleration.repack import Repacked
from mlx_nibble.acceleration.shared_modules import Replaced

Standing = dict[str, Counter[str]]
"""By the rows of x: who computes how many layers, and why."""


@dataclass(frozen=True)
class _Change:
    """A module whose class changes from ``original`` to ``rebound``."""

    path: str
    module: nn.Module = field(repr=False)
    original: type[nn.Module]
    rebound: type[nn.Module] = field(repr=False)


@dataclass(frozen=True)
class Swap(_Change):
    """A quantized layer that computes with our kernels."""

    format: str


@dataclass(frozen=True)
class Routed(_Change):
    """A layer whose code calls our operations on this device."""

    operations: frozenset[str]
    device: str


@dataclass(frozen=True)
class Kept:
    """A quantized layer that MLX computes."""

    path: str
    kind: str
    reason: str


@dataclass
class Report:
    """The decision for every quantized layer of a model.

    Attributes:
        swapped: Layers on our kernels.
        kept: Quantized layers left to MLX, each with the reason.
        routed: Other layers that call our operations.
        replaced: Shared modules whose copy is in ``routed``.
        left: On a CPU, products, convolutions and softmaxes of other layers that MLX
            computes, each with the reason.
        repacked: The layers whose weights lie in the order that the processor reads
            fastest; None without ``repack``, and on a GPU.
        tuned: Number of swapped layers that a choice of ``nibble tune`` concerns.
        unchanged: Number of quantized layers that had the same settings already.
        measured: On a GPU, the number of layers by who computes them and why; by the
            rows of x. Empty if being right is enough.
        checkpoint_dtype: The 16-bit type of the checkpoint, if activations have
            another; in the commands, KV caches have it.
    """

    swapped: list[Swap] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    routed: list[Routed] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    repacked: Repacked | None = None
    tuned: int = 0
    unchanged: int = 0
    measured: Standing = field(default_factory=dict)
    checkpoint_dtype: mx.Dtype | None = None

    def undo(self) -> None:
        """Restore each layer's class and arrays, and with them the model.

        Later calls of ``accelerate`` on the same layers are undone as well.
        """
        for changed in (*self.routed, *self.swapped):
            # An older report may have restored the class already.
            if original(type(changed.module)) is not type(changed.module):
                changed.module.__class__ = changed.original
        for child in self.replaced:
            child.undo()
        if self.repacked is not None:
            self.repacked.undo()
            self.repacked = None
        self.routed, self.swapped, self.replaced, self.left = [], [], [], []

    def __str__(self) -> str:
        """Return a summary of a few lines that counts formats and reasons."""
        total = len(self.swapped) + len(self.kept) + self.unchanged
        lines = [f"mlx-nibble: {len(self.swapped)} of {total} quantized layers"]
        if _native.reason is not None:
            lines = [f"mlx-nibble is inactive: {_native.reason}"]
        formats = Counter((s.original.__name__, s.format) for s in self.swapped)
        for (kind, form), count in sorted(formats.items()):
            lines.append(f"  {count:4} {kind} {form}")
        if self.unchanged:
            lines.append(f"  {self.unchanged:4} on our kernels already")
        if self.tuned:
            lines.append(f"  {self.tuned:4} of them by choices of nibble tune")
        for rows, whys in self.measured.items():
            lines += [f"  {n:4} with {rows}: {why}" for why, n in whys.most_common()]
        reasons = Counter((k.kind, k.reason) for k in self.kept)
        for (kind, reason), count in sorted(reasons.items()):
            lines.append(f"  {count:4} {kind} left to MLX: {reason}")
        routes = Counter(
            (r.original.__name__, r.device, ", ".join(sorted(r.operations)))
            for r in self.routed
        )
        for (kind, device, operations), count in sorted(routes.items()):
            lines.append(f"  {count:4} {kind} on our {device} {operations}")
        parts = Counter((m.kind, m.operation, m.reason) for m in self.left)
        for (kind, operation, reason), count in sorted(parts.items()):
            lines.append(f"  {count:4} {kind} leave {operation} to MLX: {reason}")
        if self.repacked is not None and self.repacked.layers:
            count, size = self.repacked.layers, self.repacked.nbytes / 1e6
            lines.append(f"  {count:4} of them repacked in place, {size:.1f} MB")
        return "\n".join(lines)

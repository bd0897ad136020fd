"""What :func:`mlx_nibble.accelerate` did to a model, and how to take it back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import mlx.nn as nn

from mlx_nibble.acceleration.rebind import original
from mlx_nibble.acceleration.repack import Copies
from mlx_nibble.acceleration.shared_modules import Replaced


@dataclass(frozen=True)
class Swap:
    """A layer that now computes with our kernels."""

    path: str
    module: nn.Module = field(repr=False)
    original: type[nn.Module]
    format: str


@dataclass(frozen=True)
class Kept:
    """A quantized layer that MLX still computes."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Routed:
    """A layer whose code now calls our operations for this device."""

    path: str
    module: nn.Module = field(repr=False)
    original: type[nn.Module]
    operations: frozenset[str]
    device: str = "CPU"


@dataclass
class Report:
    """Every quantized layer of a model: swapped, or kept and why.

    Attributes:
        swapped: Layers on our kernels.
        kept: Quantized layers left to MLX, each with the reason.
        routed: The layers between them that call our operations.
        replaced: Those of them that were shared with other models: routed is a copy.
        repacked: The layers' weights in the order that the processor wants; None
            unless asked for.
        tuned: Swapped layers that a choice of ``nibble tune`` concerns.
        unchanged: Quantized layers that were on our kernels, so set, already.
    """

    swapped: list[Swap] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    routed: list[Routed] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)
    repacked: Copies | None = None
    tuned: int = 0
    unchanged: int = 0

    def undo(self) -> None:
        """Give each layer its own class back; the model is then as it was.

        Where it has been accelerated again since, that is taken back with it.
        """
        for changed in (*self.routed, *self.swapped):
            # Not if that was done already, by an older report.
            if original(type(changed.module)) is not type(changed.module):
                changed.module.__class__ = changed.original
        for child in self.replaced:
            child.undo()
        if self.repacked is not None:
            self.repacked.forget()
            self.repacked = None
        self.routed, self.swapped, self.replaced = [], [], []

    def __str__(self) -> str:
        """Summarize in a few lines, formats and reasons counted."""
        total = len(self.swapped) + len(self.kept) + self.unchanged
        lines = [f"mlx-nibble: {len(self.swapped)} of {total} quantized layers"]
        formats = Counter((s.original.__name__, s.format) for s in self.swapped)
        for (kind, form), count in sorted(formats.items()):
            lines.append(f"  {count:4} {kind} {form}")
        if self.unchanged:
            lines.append(f"  {self.unchanged:4} on our kernels already")
        if self.tuned:
            lines.append(f"  {self.tuned:4} of them by choices of nibble tune")
        reasons = Counter((k.kind, k.reason) for k in self.kept)
        for (kind, reason), count in sorted(reasons.items()):
            lines.append(f"  {count:4} {kind} left to MLX: {reason}")
        routes = Counter(
            (r.original.__name__, r.device, ", ".join(sorted(r.operations)))
            for r in self.routed
        )
        for (kind, device, operations), count in sorted(routes.items()):
            lines.append(f"  {count:4} {kind} on our {device} {operations}")
        if self.repacked is not None:
            now, most = (
                f"{count / 1e6:.1f} MB"
                for count in (self.repacked.nbytes_so_far, self.repacked.nbytes)
            )
            lines.append(f"  repacked at first use: {now} now, {most} when all are")
        return "\n".join(lines)

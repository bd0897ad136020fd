"""A model that is measured in several configurations, with one set of weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_nibble import lm
from mlx_nibble.acceleration.settings import Settings


@dataclass(frozen=True)
class Configuration:
    """How a model computes.

    Attributes:
        name: Name of the candidate.
        accelerated: Use our kernels; otherwise the fastest setup of mlx-lm alone.
        activations: As in :func:`mlx_nibble.accelerate`.
        batch_invariant: As in :func:`mlx_nibble.accelerate`.
    """

    name: str
    accelerated: bool = True
    activations: str | None = None
    batch_invariant: bool = False


OURS = Configuration("nibble")
INT8 = Configuration("nibble int8", activations="int8")
INVARIANT = Configuration("nibble batch-invariant", batch_invariant=True)
STOCK = Configuration("mlx", accelerated=False)


class Subject:
    """Models that change from one configuration to another, and back at the end.

    All configurations share the codes. Arrays that one configuration casts are kept
    beside them, such as float32 scales for MLX on a CPU. mlx-lm's loops change with
    the models.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        """Take models as mlx-lm loads them: the model, and perhaps a draft model."""
        self.models = models
        self._loaded = [model.parameters() for model in models]
        self._cast: dict[bool, list] = {}
        self._now: Configuration | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Subject:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Restore models and loops."""
        self._undo.close()
        for model, arrays in zip(self.models, self._loaded, strict=True):
            model.update(arrays)

    def become(self, configuration: Configuration) -> None:
        """Switch the models to a configuration."""
        if configuration == self._now:
            return
        self._undo.close()
        accelerated = configuration.accelerated
        parameters = self._cast.get(accelerated, self._loaded)
        for model, arrays in zip(self.models, parameters, strict=True):
            model.update(arrays)
            if accelerated:
                report = lm.prepare(
                    model,
                    Settings(configuration.activations, configuration.batch_invariant),
                )
                self._undo.callback(report.undo)
            else:
                lm.use_stock(model)
            mx.eval(model.parameters())
        if accelerated:
            self._undo.enter_context(lm.accelerated_generation())
        self._cast[accelerated] = [
            tree_unflatten(tree_flatten(model.parameters())) for model in self.models
        ]
        self._now = configuration

    def nbytes(self, models: int) -> int:
        """Return the bytes of the first `models`' parameters in this configuration."""
        return sum(map(weight_bytes, self.models[:models]))


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters."""
    parameters = dict(tree_flatten(model.parameters()))
    return sum(array.nbytes for array in parameters.values())

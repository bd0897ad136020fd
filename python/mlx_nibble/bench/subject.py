"""A model that is measured in several configurations, of one set of weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_nibble import lm
from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.bench.side_by_side import weight_bytes


@dataclass(frozen=True)
class Configuration:
    """How a model computes.

    Attributes:
        name: Of the candidate.
        accelerated: By our kernels; else as mlx-lm alone is fastest.
        activations: As :func:`mlx_nibble.accelerate` takes it.
        batch_invariant: Likewise.
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
    """Models that change from one configuration to another, and back at its end.

    Codes are shared by all; what a configuration casts, such as scales to float32 for
    MLX on a CPU, is kept beside. mlx-lm's loops change with the models.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        """Models as mlx-lm has loaded them: the one, and perhaps its draft model."""
        self.models = models
        self._loaded = [model.parameters() for model in models]
        self._cast: dict[bool, list] = {}
        self._now: Configuration | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Subject:
        """As it is."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give models and loops back as they were."""
        self._undo.close()
        for model, arrays in zip(self.models, self._loaded, strict=True):
            model.update(arrays)

    def become(self, configuration: Configuration) -> None:
        """Have the models compute so, from the next call on."""
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
        """Bytes of the parameters of the first models, in the configuration of now."""
        return sum(map(weight_bytes, self.models[:models]))

"""A model run layer by layer, with one layer at a time in memory.

It works for all families of mlx-lm: the decoder layers are `model.layers`, take the
hidden state first and return it. Masks and all other arguments are recorded from the
model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble.layerwise.intercept import Hook, intercepted


class _Recorded(Exception):
    """All arguments have been recorded."""


class LayerStream:
    """The decoder layers of a model, called in turn with recorded arguments.

    Attributes:
        model: The model; its layers are not evaluated before they are called.
        layers: Its decoder layers.
        tokens: Batches of token ids `[B, L]`.
    """

    def __init__(self, model: nn.Module, tokens: Sequence[mx.array]):
        """Check that the model has layers."""
        layers = getattr(model, "layers", None)
        if not layers:
            raise ValueError(
                "[stream] the model must have decoder layers as `model.layers` but "
                f"{type(model).__name__} has none."
            )
        self.model = model
        self.layers: list[nn.Module] = list(layers)
        self.tokens = list(tokens)
        self._calls: list[list[tuple[tuple, dict]]] = []

    def embed(self) -> list[mx.array]:
        """Return the input of the first layer for each batch, `[B, L, D]`."""
        recorded = [self._record(batch) for batch in self.tokens]
        self._calls = [calls for _, calls in recorded]
        return [state for state, _ in recorded]

    def _record(self, batch: mx.array) -> tuple[mx.array, list[tuple[tuple, dict]]]:
        """Return the first layer's input, and the other arguments of every layer."""
        states: list[mx.array] = []
        calls: list[tuple[tuple, dict]] = []

        def skip(_: Any, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            states.append(x)
            calls.append((args, kwargs))
            if len(calls) == len(self.layers):
                raise _Recorded  # skip the rest of the model, above all the head
            return x

        with suppress(_Recorded):
            self._forward(batch, skip)
        if len(calls) != len(self.layers):
            raise ValueError(
                f"[stream] each of {len(self.layers)} layers must be called once but "
                f"{len(calls)} calls were seen."
            )
        mx.eval(states[0])
        return states[0], calls

    def call(self, index: int, batch: int, state: mx.array) -> mx.array:
        """Run layer `index` on the hidden state of one batch."""
        args, kwargs = self._calls[batch][index]
        y = self.layers[index](state, *args, **kwargs)
        if not isinstance(y, mx.array):
            raise ValueError(
                "[stream] a decoder layer must return the hidden state alone but "
                f"{type(self.layers[index]).__name__} returned a {type(y).__name__}."
            )
        mx.eval(y)
        return y

    def logits(self, batch: int, state: mx.array) -> mx.array:
        """Return the logits of the last layer's output, `[B, L, vocabulary]`."""

        def replay(_: Any, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            return state

        return self._forward(self.tokens[batch], replay)

    def _forward(self, tokens: mx.array, hook: Hook) -> mx.array:
        with intercepted([(layer, hook) for layer in self.layers]):
            return self.model(tokens)

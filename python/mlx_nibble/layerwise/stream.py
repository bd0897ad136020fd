"""Run a model layer by layer, so that one layer at a time need be in memory.

Works for every model whose decoder layers are `model.layers`, take the hidden state
first and return it: the families of mlx-lm. Nothing is assumed of masks and other
arguments; they are recorded from the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble.layerwise.intercept import Hook, intercepted


class _Recorded(Exception):
    """All arguments are known."""


class LayerStream:
    """The decoder layers of a model, to be called in turn on recorded arguments.

    Attributes:
        model: The model; only what lies outside its layers is evaluated at first.
        layers: Its decoder layers.
        tokens: Batches of token ids `[B, L]`.
    """

    def __init__(self, model: nn.Module, tokens: Sequence[mx.array]):
        """Refuse a model without layers."""
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
        """The input of the first layer for each batch, `[B, L, D]`."""
        recorded = [self._record(batch) for batch in self.tokens]
        self._calls = [calls for _, calls in recorded]
        return [state for state, _ in recorded]

    def _record(self, batch: mx.array) -> tuple[mx.array, list[tuple[tuple, dict]]]:
        """What the first layer is given, and the other arguments of every layer."""
        states: list[mx.array] = []
        calls: list[tuple[tuple, dict]] = []

        def skip(_: Any, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            states.append(x)
            calls.append((args, kwargs))
            if len(calls) == len(self.layers):
                raise _Recorded  # what follows, the head above all, is not needed
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
        """What the model makes of the last layer's output, `[B, L, vocabulary]`."""

        def replay(_: Any, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            return state

        return self._forward(self.tokens[batch], replay)

    def _forward(self, tokens: mx.array, hook: Hook) -> mx.array:
        with intercepted([(layer, hook) for layer in self.layers]):
            return self.model(tokens)


def batches(
    tokens: Sequence[int], length: int, samples: int, batch_size: int = 1
) -> list[mx.array]:
    """Cut a text into sequences, spread evenly over it.

    Args:
        tokens: The text's token ids.
        length: Tokens a sequence.
        samples: How many sequences; fewer if the text is too short.
        batch_size: Sequences a batch.

    Returns:
        Arrays `[batch_size, length]`, the last one maybe smaller.

    Raises:
        ValueError: If the text has fewer than `length` tokens, or either is below 1.
    """
    if min(length, samples) < 1:
        raise ValueError(
            "[text] samples and their length must be at least 1 but are "
            f"{samples} and {length}."
        )
    available = len(tokens) // length
    if available == 0:
        raise ValueError(
            f"[text] at least {length} tokens are required but the text has "
            f"{len(tokens)}."
        )
    count = min(samples, available)
    starts = [i * available // count * length for i in range(count)]
    rows = [list(tokens[s : s + length]) for s in starts]
    return [mx.array(rows[i : i + batch_size]) for i in range(0, count, batch_size)]

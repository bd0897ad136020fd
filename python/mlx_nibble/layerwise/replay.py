"""A forward pass that is repeated from the middle, after a change of later parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.stream import arrays, copied
from mlx_nibble.layerwise.trace import Trace


class Replay:
    """The results of all parts for one batch, in memory.

    Attributes:
        logits: Logits of the recorded pass, `[B, L, vocabulary]`.
    """

    def __init__(self, model: nn.Module, traced: Trace, batch: mx.array):
        """Run the model once."""
        self._model, self._parts, self._batch = model, traced.parts, batch
        self._results: list[Any] = []

        def record(call: Callable[[], Any]) -> Any:
            result = call()
            mx.eval(arrays(result))
            self._results.append(copied(result))
            return result

        self.logits = self._run(record)

    def after(self, calls: int) -> mx.array:
        """Return the logits with recorded results for the first calls of parts."""
        recorded = [copied(result) for result in reversed(self._results[:calls])]
        return self._run(lambda call: recorded.pop() if recorded else call())

    def _run(self, handle: Callable[[Callable[[], Any]], Any]) -> mx.array:
        inside = False  # a part that another part calls belongs to the latter

        def hook(original: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return original(*args, **kwargs)
            inside = True
            try:
                return handle(lambda: original(*args, **kwargs))
            finally:
                inside = False

        hooks: list[tuple[nn.Module, Hook]] = [(p, hook) for p in self._parts.values()]
        with intercepted(hooks):
            return self._model(self._batch)

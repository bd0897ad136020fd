"""A forward pass that is repeated from the middle, after a change of later parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.stream import arrays, copied, has_cache
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
        # A part that is not run fills no cache, which later parts may read.
        self._from_start = False

        def record(call: Callable[[], Any], given: Any) -> Any:
            self._from_start = self._from_start or has_cache(given)
            result = call()
            mx.eval(arrays(result))
            self._results.append(copied(result))
            return result

        self.logits = self._run(record)

    def after(self, calls: int) -> mx.array:
        """Return the logits with recorded results for the first calls of parts."""
        known = [] if self._from_start else self._results[:calls]
        recorded = [copied(result) for result in reversed(known)]
        return self._run(lambda call, _: recorded.pop() if recorded else call())

    def _run(self, handle: Callable[[Callable[[], Any], Any], Any]) -> mx.array:
        inside = False  # a part that another part calls belongs to the latter

        def hook(original: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return original(*args, **kwargs)
            inside = True
            try:
                return handle(lambda: original(*args, **kwargs), (args, kwargs))
            finally:
                inside = False

        hooks: list[tuple[nn.Module, Hook]] = [(p, hook) for p in self._parts.values()]
        with intercepted(hooks):
            return self._model(self._batch)

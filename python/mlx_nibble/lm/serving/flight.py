"""One request on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from typing import Any

import mlx.core as mx
from mlx_lm.server import GenerationContext, Response

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]


class Flight(Queue):
    """The queue between engine and client, which knows what has passed through it.

    If the engine fails, it runs the request again. The tokens that the client has
    already are then forced, and not sent again.
    """

    def __init__(self, request: Any, args: Any) -> None:
        """Start before the engine has seen the request."""
        super().__init__()
        self.request, self.args = request, args
        self.tokens: list[int] = []
        self.done = False
        self.in_batch = True
        self._context: GenerationContext | None = None
        self._skip = 0

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Hand an item of the engine to the client, unless the client has it."""
        if isinstance(item, GenerationContext):
            again, self._context = self._context is not None, item
            item._should_stop = self.done  # the client may have left meanwhile
            if again:
                return
        elif isinstance(item, Response):
            if self._skip > 0:
                self._skip -= 1
                return
            self.tokens.append(item.token)
        elif item is None or isinstance(item, Exception):
            self.done = True
        super().put(item, block, timeout)

    def cancel(self) -> None:
        """Let the engine drop the request."""
        self.done = True
        if self._context is not None:
            self._context._should_stop = True

    def restart(self) -> None:
        """Prepare for being run again from the start."""
        self._skip = len(self.tokens)

    def sampler(self, sample: Sampler) -> Sampler:
        """Return a sampler that first repeats the tokens that the client has."""
        if not self._skip:
            return sample
        forced = iter(self.tokens[: self._skip])

        def repeat(logprobs: mx.array) -> mx.array:
            token = next(forced, None)
            if token is None:
                return sample(logprobs)
            return mx.full(logprobs.shape[:-1], token, mx.uint32)

        return repeat

    def processor(self, process: Processor) -> Processor:
        """Return a processor of logits that sees the whole text.

        Outside of batches, mlx-lm leaves out the part of the prompt whose KV cache it
        has kept. A penalty for repetitions would then depend on earlier requests.
        """

        def run(tokens: mx.array, logits: mx.array) -> mx.array:
            context = self._context
            if self.in_batch or context is None or context.prompt_cache_count < 1:
                return process(tokens, logits)
            kept = mx.array(context.prompt[: context.prompt_cache_count], tokens.dtype)
            return process(mx.concatenate([kept, tokens]), logits)

        return run

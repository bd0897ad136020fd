"""mlx-lm's batching engine, which no request ends."""

from __future__ import annotations

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from queue import Empty
from typing import Any

import mlx.core as mx
from mlx_lm import server
from mlx_lm.models.cache import LRUPromptCache

from mlx_nibble.lm.serving.fit import Capacity
from mlx_nibble.lm.serving.flight import Flight
from mlx_nibble.lm.serving.grammar import Constraint, Grammars
from mlx_nibble.lm.serving.metrics import Metrics
from mlx_nibble.lm.serving.refusal import Refusal, internal_error

# Failures in a row for which no request can be blamed.
_GIVE_UP = 3
# Seconds between looks at whether the client is still there.
_LOOK = 0.5
_FORMAT = "response_format"


class Engine(server.ResponseGenerator):
    """Generates in one thread for all clients.

    An exception of one request passes through the whole batch. The engine then runs the
    requests of the batch again, one at a time. The one that fails alone gets an error;
    all others go on where they were.
    """

    def __init__(
        self,
        provider: server.ModelProvider,
        make_cache: Callable[[], LRUPromptCache],
        on_death: Callable[[], None],
    ) -> None:
        """Start the thread, which loads the model.

        Args:
            provider: Loads models.
            make_cache: Function that makes the cache of prompts.
            on_death: Called in the thread if it ends by itself.
        """
        self.death: BaseException | None = None
        self.metrics = Metrics()
        # An engine that has none is loading, or is starting again after a fault.
        self._takes_requests = False
        self._make_cache, self._on_death = make_cache, on_death
        self._running: list[Flight] = []
        self._suspects: deque[Flight] = deque()
        self._alone: Flight | None = None
        self._unexplained = 0
        self._capacity: tuple[Any, Capacity] | None = None
        self._grammars: Grammars | None = None
        self._provider_load = provider.load
        vars(provider)["load"] = self._load
        super().__init__(provider, make_cache())

    @property
    def is_healthy(self) -> bool:
        """Whether a request would be answered now."""
        return self._takes_requests and self.generation_available()

    def generate(
        self,
        request: Any,
        generation_args: Any,
        progress_callback: Callable[[int, int], None] | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> tuple[Any, Generator[Any, None, None]]:
        """Return the context of an answer, and its tokens as they come.

        Args:
            request: mlx-lm's ``CompletionRequest``.
            generation_args: mlx-lm's ``GenerationArguments``.
            progress_callback: Receives how much of the prompt is read.
            look: Function that is called twice a second. If it raises, the engine
                drops the request.

        Raises:
            Refusal: If the request cannot be answered.
        """
        if not self.generation_available():
            raise Refusal(503, "the server is ending: its engine has failed")
        if self._is_distributed:  # requests are pickled for the other ranks
            if generation_args.grammar is not None:
                raise Refusal(
                    400, "response_format: only text, by several processes", _FORMAT
                )
            return super().generate(request, generation_args, progress_callback)
        flight = Flight(request, generation_args)
        generation_args.flight = flight
        self.requests.put((flight, request, generation_args))
        items = self._counted(self._items(flight, look))

        def tokens() -> Generator[Any, None, None]:
            for item in items:
                if not isinstance(item, tuple):
                    yield item
                elif progress_callback is not None:
                    progress_callback(*item)

        context = next(items)
        context.stop = flight.cancel
        return context, tokens()

    def _items(self, flight: Flight, look: Callable[[], None]) -> Iterator[Any]:
        next_look = time.monotonic() + _LOOK
        while True:
            try:
                item = flight.get(timeout=_LOOK)
            except Empty:
                if not self.generation_available():
                    raise Refusal(503, "the engine has ended") from None
                item = ()
            if time.monotonic() > next_look:
                next_look = time.monotonic() + _LOOK
                try:
                    look()
                except Exception:
                    flight.cancel()
                    raise
            if item is None:
                return
            if isinstance(item, Refusal):
                raise item
            if isinstance(item, Exception):
                logging.error("A request failed.", exc_info=item)
                raise internal_error()
            if item != ():
                yield item

    def _counted(self, items: Iterator[Any]) -> Iterator[Any]:
        """Pass items on, and count what they are."""
        metrics, start = self.metrics, time.monotonic()
        context = first = None
        metrics.waiting.inc()
        try:
            for item in items:
                if isinstance(item, server.GenerationContext):
                    context = item
                    metrics.prompt_tokens.inc(len(item.prompt))
                elif isinstance(item, server.Response):
                    if first is None:
                        first = time.monotonic() - start
                        metrics.waiting.dec()
                        metrics.first_token.observe(first)
                    metrics.generated_tokens.inc()
                yield item
        finally:
            if first is None:
                metrics.waiting.dec()
            if context is not None:  # known only now: outside of batches it comes late
                metrics.cached_tokens.inc(max(context.prompt_cache_count, 0))
            metrics.seconds.observe(time.monotonic() - start)

    # In the thread that generates.

    def _run_generate(self) -> None:
        try:
            while not self._stop:
                try:
                    self._generate()
                except Exception as error:
                    self._recover(error)
                gc.collect()  # the failed batch
                mx.clear_cache()
        except BaseException as error:
            self.death = error
        finally:
            self._generation_failed = True
            if not self._stop:
                self._on_death()

    def _recover(self, error: Exception) -> None:
        self._takes_requests = False
        running = [flight for flight in self._running if not flight.done]
        self._unexplained = 0 if running else self._unexplained + 1
        hopeless = self._unexplained == _GIVE_UP or self.model_provider.model is None
        if self._is_distributed or (hopeless and not running):
            raise error
        logging.error("The batch failed.", exc_info=error)
        self.prompt_cache = self._make_cache()
        self._running = []
        if self._alone in running:
            self._alone.put(internal_error())
            running.remove(self._alone)
            self._alone = None
            again, self._suspects = [*running, *self._suspects], deque()
            for flight in again:
                flight.restart()
                self.requests.put((flight, flight.request, flight.args))
        else:
            # The newest first: the others have computed some tokens without a fault.
            self._suspects.extend(sorted(running, key=lambda f: len(f.tokens)))
            self._alone = None

    def _next_request(self, timeout: float | None = None) -> Any:
        self._takes_requests = True
        if self._is_distributed:
            return super()._next_request(timeout)
        if self._alone is not None and not self._alone.done:
            return None
        self._running = [flight for flight in self._running if not flight.done]
        if self._suspects:
            if self._running:
                return None
            self._alone = self._suspects.popleft()
            self._alone.restart()
            self._running.append(self._alone)
            return self._alone, self._alone.request, self._alone.args
        self._alone = None
        request: Any = super()._next_request(timeout)
        if request is None or request[0].done:  # the client has left
            return None
        self._running.append(request[0])
        return request

    def _serve_single(self, request: Any, stream: Any) -> None:
        request[0].in_batch = False
        super()._serve_single(request, stream)

    def _tokenize(self, tokenizer: Any, request: Any, args: Any) -> Any:
        try:
            found = super()._tokenize(tokenizer, request, args)
            prompt = [int(token) for token in found[0]]
            key = self.model_provider.model_key
            self._make_state_machine(key, tokenizer, args.stop_words)
        except Exception as error:
            raise Refusal(
                400,
                "the request does not fit the model's tokenizer or chat template: "
                f"{error or type(error).__name__}",
            ) from None
        model = self.model_provider.model
        if self._capacity is None or self._capacity[0] is not model:
            self._capacity = model, Capacity.of(model)
        capacity = self._capacity[1]
        capacity.fit(prompt, args)
        if getattr(args, "grammar", None) is not None:
            args.constraint = self._constraint(tokenizer, capacity, prompt, args)
        return found

    def _constraint(
        self, tokenizer: Any, capacity: Capacity, prompt: list[int], args: Any
    ) -> Constraint:
        grammars = self._grammars
        if grammars is None or grammars.tokenizer is not tokenizer:
            try:
                grammars = Grammars(tokenizer, capacity.vocabulary)
            except Exception as error:
                raise Refusal(
                    400, f"response_format: the model's tokenizer: {error}", _FORMAT
                ) from None
            self._grammars = grammars
        return grammars.processor(args.grammar, len(prompt))

    def _load(self, model: str, *others: Any) -> Any:
        try:
            return self._provider_load(model, *others)
        except Exception as error:
            raise Refusal(
                404, f"{model!r} cannot be loaded: {error}", "model", "model_not_found"
            ) from None

"""Counts of a server, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a short answer of a small model to a long one of a large model, in seconds.
_TIMES = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counts of one server; each has a line of help in the text itself."""

    def __init__(self) -> None:
        """Start at zero."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # resident memory and more, on Linux
        self.answers = Counter(
            "nibble_answers", "HTTP answers", ["route", "status"], registry=registry
        )
        self.prompt_tokens = Counter(
            "nibble_prompt_tokens", "Tokens of prompts", registry=registry
        )
        self.cached_tokens = Counter(
            "nibble_prompt_tokens_cached",
            "Tokens of prompts whose keys and values were kept",
            registry=registry,
        )
        self.generated_tokens = Counter(
            "nibble_generated_tokens",
            "Tokens generated; their rate is the speed of all clients together",
            registry=registry,
        )
        self.waiting = Gauge(
            "nibble_requests_waiting", "Requests without a token yet", registry=registry
        )
        self.first_token = Histogram(
            "nibble_first_token_seconds",
            "Time from a request to its first token",
            buckets=_TIMES,
            registry=registry,
        )
        self.seconds = Histogram(
            "nibble_request_seconds",
            "Time from a request to the end of its answer",
            buckets=_TIMES,
            registry=registry,
        )
        for kind, read in (
            ("active", mx.get_active_memory),
            ("cached", mx.get_cache_memory),
            ("peak", mx.get_peak_memory),
        ):
            self.follow(f"nibble_mlx_{kind}_bytes", f"MLX's {kind} memory", read)

    def follow(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Add a number that is read whenever somebody asks."""
        Gauge(name, help, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """Return all counts."""
        return generate_latest(self._registry)

"""The number of requests at once, and the end of the server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_nibble.lm.serving.refusal import Refusal


class Gate:
    """Lets a bounded number of requests in, until it is closed.

    Attributes:
        open: Number of the requests inside.
    """

    def __init__(self, most: int, most_of_client: int = 0) -> None:
        """Let `most` requests in at once, and `most_of_client` of one client.

        0 sets no bound on those of one client.
        """
        self.open = 0
        self._most, self._most_of_client = most, most_of_client
        self._of_client: Counter[str] = Counter()
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def request(self, client: str = "") -> Iterator[None]:
        """Hold a place for a request of a client.

        Raises:
            Refusal: If there is no place, or the server is ending.
        """
        with self._changed:
            if self._closed:
                raise Refusal(503, "the server is ending")
            if self.open >= self._most:
                raise Refusal(503, "too many requests; try again later")
            if 0 < self._most_of_client <= self._of_client[client]:
                raise Refusal(
                    429,
                    f"at most {self._most_of_client} requests of a client are answered "
                    "at once; try again later",
                    code="rate_limit_exceeded",
                )
            self.open += 1
            self._of_client[client] += 1
        try:
            yield
        finally:
            with self._changed:
                self.open -= 1
                self._of_client[client] -= 1
                self._of_client += Counter()  # forgets clients without requests
                self._changed.notify_all()

    def close(self) -> None:
        """Let no request in any more."""
        self._closed = True

    def wait_until_empty(self, seconds: float) -> bool:
        """Wait for the requests inside; return whether all have ended."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.open, seconds)

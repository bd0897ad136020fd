"""The number of requests at once, and the end of the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_nibble.lm.serving.refusal import Refusal


class Gate:
    """Lets a bounded number of requests in, until it is closed.

    Attributes:
        open: Number of the requests inside.
    """

    def __init__(self, most: int) -> None:
        """Let `most` requests in at once."""
        self.open = 0
        self._most = most
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Hold a place for a request.

        Raises:
            Refusal: If there is no place, or the server is ending.
        """
        with self._changed:
            if self._closed:
                raise Refusal(503, "the server is ending")
            if self.open >= self._most:
                raise Refusal(503, "too many requests; try again later")
            self.open += 1
        try:
            yield
        finally:
            with self._changed:
                self.open -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Let no request in any more."""
        self._closed = True

    def wait_until_empty(self, seconds: float) -> bool:
        """Wait for the requests inside; return whether all have ended."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.open, seconds)

"""Connections of clients that may be slow, silent or many."""

from __future__ import annotations

import io
import logging
import select
import socket
import sys
import threading
import time
from contextlib import suppress
from http.server import ThreadingHTTPServer
from socketserver import BaseRequestHandler
from typing import Any

from mlx_nibble.lm.serving.refusal import Refusal

# Seconds and bytes for which a client may go on sending after its answer. A socket
# that is closed before all is read resets the connection, and the answer is lost.
_LINGER = 1.0
_LEFT_OVER = 64 << 20


class DeadlineReader(io.RawIOBase):
    """Reads a socket until a moment, however slowly bytes come."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        """Start with this many seconds."""
        self._connection, self._seconds = connection, seconds
        self.restart()

    def restart(self) -> None:
        """Give the client the same time again."""
        self._deadline = time.monotonic() + self._seconds

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read what is there.

        Raises:
            TimeoutError: If the time is over.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client took too long")
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._seconds)


def has_left(connection: socket.socket) -> bool:
    """Return whether a client has closed its connection."""
    try:
        ready = select.select([connection], [], [], 0)[0]
        return bool(ready) and connection.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


class Server(ThreadingHTTPServer):
    """A bounded number of threads, one for each connection."""

    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, kind: socket.AddressFamily, address: Any, most: int) -> None:
        """Listen; ``most`` connections may be open."""
        self.address_family = kind
        self._free = threading.BoundedSemaphore(most)
        self._taken: dict[int, bool] = {}
        super().__init__(address, BaseRequestHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, if one is free."""
        if self._free.acquire(blocking=False):
            self._taken[id(request)] = True
            try:
                super().process_request(request, client_address)
            except BaseException:  # as Ctrl-C, maybe after the thread has begun
                self._release(request)
                raise
            return
        body = Refusal(503, "too many connections; try again later").body()
        head = "HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with suppress(OSError):
            request.setblocking(False)
            request.send(head.encode() + body)
        self.close_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release(request)

    def _release(self, request: Any) -> None:
        """Free the place of a connection, once."""
        if self._taken.pop(id(request), False):
            self._free.release()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, after reading what the client still sends."""
        end, left = time.monotonic() + _LINGER, _LEFT_OVER
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            while left > 0 and (wait := end - time.monotonic()) > 0:
                request.settimeout(wait)
                data = request.recv(1 << 16)
                if not data:
                    break
                left -= len(data)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error that no answer could report."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # the client has left, or was too slow
            logging.info("%s: %s", client_address[0], error)
        else:
            logging.error("A connection failed.", exc_info=error)

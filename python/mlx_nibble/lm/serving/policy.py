"""The limits of a server, which its command line sets."""

from __future__ import annotations

import argparse
import hmac
import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# A prompt of a million tokens, or a few photographs.
_BODY = 16 << 20
# Each connection is a thread that sleeps.
_CONNECTIONS = 256
_SECONDS = 30.0
# Four full batches of mlx-lm's --decode-concurrency.
_REQUESTS = 128
# OpenAI's own clients give up after as many seconds.
_ANSWER_SECONDS = 600.0
# Docker kills ten seconds after SIGTERM, Kubernetes thirty.
_END_SECONDS = 25.0


@dataclass(frozen=True)
class Policy:
    """Rights and limits of clients.

    Attributes:
        trust_requests: Whether a request may name other models, adapters and images by
            URL, which the server then loads.
        allowed_origins: Web pages' origins that may use the server; "*" allows all.
        allowed_hosts: Names in the Host header besides those of a loopback address;
            "*" allows every name.
        max_body_bytes: Largest body.
        max_connections: Largest number of open connections.
        client_timeout: Seconds that a client has for its header, for its body, and for
            taking each piece of the answer.
        max_requests: Largest number of requests at once, running and waiting.
        max_client_requests: Largest number of those of one address; 0 sets no bound.
        max_request_tokens: Most tokens that an answer may have; 0 sets no bound.
        request_timeout: Seconds from a request to the end of its answer.
        shutdown_timeout: Seconds that running requests have when the server ends.
        api_key: Key that clients must send; an empty one allows all.
    """

    trust_requests: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = _BODY
    max_connections: int = _CONNECTIONS
    client_timeout: float = _SECONDS
    max_requests: int = _REQUESTS
    max_client_requests: int = 0
    max_request_tokens: int = 0
    request_timeout: float = _ANSWER_SECONDS
    shutdown_timeout: float = _END_SECONDS
    api_key: str = field(default="", repr=False)

    def allows(self, origin: str) -> bool:
        """Return whether a page of this origin may use the server."""
        return "*" in self.allowed_origins or origin in self.allowed_origins

    def allows_key(self, header: str | None) -> bool:
        """Return whether an Authorization header has the key."""
        kind, _, key = (header or "").partition(" ")
        sent = key.strip() if kind.lower() == "bearer" else ""
        right = self.api_key.encode()
        return not right or hmac.compare_digest(
            sent.encode("latin-1", "replace"), right
        )

    def allows_host(self, header: str | None, address: str) -> bool:
        """Return whether a request's Host header is expected.

        A web page can name its own host and resolve it to 127.0.0.1. So a server on a
        loopback address accepts only names of this machine. Other addresses are open
        to the network anyway.
        """
        if header is None or "*" in self.allowed_hosts or not is_loopback(address):
            return True  # no browser leaves the header out
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        return name in ("localhost", *self.allowed_hosts) or is_loopback(name)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`from_options` reads."""
    parser.add_argument(
        "--trust-requests",
        action="store_true",
        help="let requests name other models, adapters and images by URL, which the "
        "server then loads or fetches; default: only --model is served",
    )
    parser.add_argument(
        "--allowed-origins",
        type=_names,
        default=(),
        help="origins of web pages that may use the server, separated by commas; * "
        "allows all (default: none but its own)",
    )
    parser.add_argument(
        "--allowed-hosts",
        type=_names,
        default=(),
        help="names in the Host header that a server on a loopback address accepts "
        "besides its own, separated by commas; * accepts all",
    )
    parser.add_argument(
        "--max-body-bytes",
        type=_positive(int),
        default=_BODY,
        help="largest body of a request (default: %(default)s)",
    )
    parser.add_argument(
        "--max-connections",
        type=_positive(int),
        default=_CONNECTIONS,
        help="connections at once; further ones get status 503 (default: %(default)s)",
    )
    parser.add_argument(
        "--client-timeout",
        type=_positive(float),
        default=_SECONDS,
        help="seconds that a client has for its header, for its body, and for taking "
        "each piece of the answer (default: %(default)s)",
    )

    parser.add_argument(
        "--max-requests",
        type=_positive(int),
        default=_REQUESTS,
        help="requests at once, running and waiting; further ones get status 503 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--max-client-requests",
        type=_positive(int),
        default=0,
        help="requests of one address at once; further ones get status 429 (default: "
        "those of all clients)",
    )
    parser.add_argument(
        "--max-request-tokens",
        type=_positive(int),
        default=0,
        help="most tokens that an answer may have, whatever its request says "
        "(default: the model's context)",
    )
    parser.add_argument(
        "--request-timeout",
        type=_positive(float),
        default=_ANSWER_SECONDS,
        help="seconds from a request to the end of its answer (default: %(default)s)",
    )
    parser.add_argument(
        "--shutdown-timeout",
        type=_positive(float),
        default=_END_SECONDS,
        help="seconds that running requests have to end after Ctrl-C or SIGTERM "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("NIBBLE_API_KEY", ""),
        help="key that each request must have, as OpenAI's clients send it (default: "
        "NIBBLE_API_KEY, or none)",
    )


def from_options(options: argparse.Namespace) -> Policy:
    """Return the policy of a parsed command line."""
    return Policy(**{name: getattr(options, name) for name in vars(Policy())})


def is_loopback(name: str) -> bool:
    """Return whether a name of a host is this machine's alone."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _positive(kind: type) -> type:
    def read(text: str):
        value = kind(text)
        if not 0 < value < 1e12:
            raise ValueError
        return value

    read.__name__ = f"positive {kind.__name__}"  # argparse names it in its error
    return read  # pyright: ignore[reportReturnType]

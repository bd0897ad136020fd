"""The limits of a server, which its command line sets."""

from __future__ import annotations

import argparse
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

# A prompt of a million tokens, or a few photographs.
_BODY = 16 << 20
# Each connection is a thread that sleeps.
_CONNECTIONS = 256
_SECONDS = 30.0


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
    """

    trust_requests: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = _BODY
    max_connections: int = _CONNECTIONS
    client_timeout: float = _SECONDS

    def allows(self, origin: str) -> bool:
        """Return whether a page of this origin may use the server."""
        return "*" in self.allowed_origins or origin in self.allowed_origins

    def allows_host(self, header: str | None, address: str) -> bool:
        """Return whether a request's Host header is expected.

        A web page can name its own host and resolve it to 127.0.0.1. So a server on a
        loopback address accepts only names of this machine. Other addresses are open
        to the network anyway.
        """
        if header is None or "*" in self.allowed_hosts or not _is_loopback(address):
            return True  # no browser leaves the header out
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        return name in ("localhost", *self.allowed_hosts) or _is_loopback(name)


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


def from_options(options: argparse.Namespace) -> Policy:
    """Return the policy of a parsed command line."""
    return Policy(**{name: getattr(options, name) for name in vars(Policy())})


def _is_loopback(name: str) -> bool:
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

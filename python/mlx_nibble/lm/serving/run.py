"""Run mlx-lm's server with our engine and our handler."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx_lm import server
from mlx_lm.models.cache import LRUPromptCache

from mlx_nibble.lm.patches import replaced
from mlx_nibble.lm.serving.engine import Engine, make_sampler
from mlx_nibble.lm.serving.handler import Handler
from mlx_nibble.lm.serving.policy import Policy, memory_bytes
from mlx_nibble.lm.serving.sockets import Server


@contextmanager
def checked_serving(policy: Policy, module: ModuleType) -> Iterator[None]:
    """Let ``mlx_lm.server.main`` serve through our checks inside this context."""
    with (
        replaced(module, "run", partial(run, policy)),
        replaced(module, "_make_sampler", partial(make_sampler, module._make_sampler)),
    ):
        yield


def run(policy: Policy, host: str, port: int, provider: Any) -> None:
    """Serve until the process is told to end.

    Raises:
        OSError: If the address cannot be had.
        RuntimeError: If the engine has failed for good.
    """
    cli = provider.cli_args
    if cli.model is None and not policy.trust_requests:
        raise ValueError(
            "[serve] --model is required, or --trust-requests, which lets each "
            "request name a model."
        )
    most = cli.prompt_cache_bytes or memory_bytes() // 16

    def make_cache() -> LRUPromptCache:
        return LRUPromptCache(cli.prompt_cache_size, most)

    if mx.distributed.init().rank() > 0:
        engine = Engine(provider, make_cache, lambda: os._exit(1))
        engine.join()
        return
    info = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    Server.address_family = info[0]
    listening: list[Server] = []

    def stop() -> None:
        for http in listening:
            http.shutdown()

    http = Server(info[4], None, policy.max_connections)
    engine = Engine(provider, make_cache, stop)
    fingerprint = server.get_system_fingerprint()
    http.RequestHandlerClass = partial(
        Handler, engine, policy, system_fingerprint=fingerprint
    )
    listening.append(http)
    logging.info("Serving at %s on port %d.", host, http.server_port)
    with suppress(KeyboardInterrupt):
        if engine.generation_available():
            http.serve_forever(poll_interval=0.1)
    http.server_close()
    if engine.death is not None:
        raise RuntimeError(f"[serve] the engine has failed: {engine.death}")
    engine.stop_and_join()

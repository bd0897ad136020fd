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

from mlx_nibble.lm.replaced import replaced
from mlx_nibble.lm.serving.engine import Engine
from mlx_nibble.lm.serving.gate import Gate
from mlx_nibble.lm.serving.handler import Handler
from mlx_nibble.lm.serving.memory import give_back, machine_bytes
from mlx_nibble.lm.serving.policy import Policy, is_loopback
from mlx_nibble.lm.serving.sampling import make_processors, make_sampler
from mlx_nibble.lm.serving.sockets import Server

# A share of the machine's memory, unless --prompt-cache-bytes says otherwise. mlx-lm
# bounds only the number of sequences, each of which may fill the model's context.
_CACHE_SHARE = 16
# Seconds for the answers to requests that the end has cut.
_LAST_WORDS = 2.0


@contextmanager
def checked_serving(policy: Policy, module: ModuleType) -> Iterator[None]:
    """Let ``mlx_lm.server.main`` serve through our checks inside this context."""
    sampler = partial(make_sampler, module._make_sampler)
    processors = partial(make_processors, module._make_logits_processors)
    with (
        replaced(module, "run", partial(run, policy)),
        replaced(module, "_make_sampler", sampler),
        replaced(module, "_make_logits_processors", processors),
    ):
        yield


def run(policy: Policy, host: str, port: int, provider: Any) -> None:
    """Serve until the process is told to end.

    Raises:
        OSError: If the address cannot be had.
        ValueError: If no model may be served.
        RuntimeError: If the engine has failed for good.
    """
    if provider.cli_args.model is None and not policy.trust_requests:
        raise ValueError(
            "[serve] --model is required, or --trust-requests, which lets each "
            "request name a model."
        )
    give_back()
    if mx.distributed.init().rank() > 0:
        # Without this process its peers wait forever.
        Engine(provider, partial(prompt_cache, provider), lambda: os._exit(1)).join()
        return
    http, engine, gate = start(policy, host, port, provider)
    logging.info("Starting httpd at %s on port %d...", host, http.server_port)
    if not policy.api_key and not is_loopback(str(http.server_address[0])):
        logging.warning("Anybody who reaches this address may ask: see --api-key.")
    with suppress(KeyboardInterrupt):
        http.serve_forever(poll_interval=0.1)
    gate.close()
    http.server_close()
    if engine.death is not None:
        raise RuntimeError(f"[serve] the engine has failed: {engine.death}")
    with suppress(KeyboardInterrupt):  # a second one ends at once
        if gate.open:
            logging.info(
                "Waiting for %d requests, %g s at most; Ctrl-C ends them.",
                gate.open,
                policy.shutdown_timeout,
            )
        gate.wait_until_empty(policy.shutdown_timeout)
    engine.stop_and_join()
    gate.wait_until_empty(_LAST_WORDS)


def start(
    policy: Policy, host: str, port: int, provider: Any
) -> tuple[Server, Engine, Gate]:
    """Return a server that listens, its engine, which loads the model, and its gate.

    The server's ``serve_forever`` ends when the engine has failed for good.
    """
    kind, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    http = Server(kind, address, policy.max_connections)
    engine = Engine(provider, partial(prompt_cache, provider), http.shutdown)
    gate = Gate(policy.max_requests, policy.max_client_requests)
    follow = engine.metrics.follow
    follow("nibble_requests_open", "Requests at once", lambda: gate.open)
    follow("nibble_healthy", "Whether /health is ok", lambda: engine.is_healthy)
    for name, read in (("sequences", len), ("bytes", lambda cache: cache.nbytes)):
        follow(
            f"nibble_prompt_cache_{name}",
            f"{name.capitalize()} of keys and values kept",
            lambda read=read: read(engine.prompt_cache),
        )
    http.RequestHandlerClass = partial(
        Handler,
        engine,
        policy,
        gate,
        system_fingerprint=server.get_system_fingerprint(),
    )
    return http, engine, gate


def prompt_cache(provider: Any) -> LRUPromptCache:
    """Return an empty cache of prompts, which has a bound."""
    cli = provider.cli_args
    most = cli.prompt_cache_bytes
    if most is None:
        most = machine_bytes() // _CACHE_SHARE
    return LRUPromptCache(cli.prompt_cache_size, most)

"""`nibble serve` in this process, over HTTP, with the real engine."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import server as upstream

from mlx_nibble import Settings, lm
from mlx_nibble.lm.serving.policy import Policy
from mlx_nibble.lm.serving.run import start
from tests.soak.clients import Load

DEFAULTS = Policy()


def provider_of(*arguments: str) -> Any:
    """Return what mlx_lm.server makes of its command line."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["serve", "--log-level", "CRITICAL", *arguments])
        patch.setattr(upstream, "run", lambda host, port, it: made.append(it))
        upstream.main()
    return made[0]


@contextmanager
def serving(folder: Path, *arguments: str, policy: Policy = DEFAULTS) -> Iterator[Load]:
    """Serve in this process; give the load, whose ``engine`` is the engine."""
    provider = provider_of("--model", str(folder), *arguments)
    exact = Settings(batch_invariant=True)
    with lm.accelerated_loading(exact):
        http, engine, gate = start(policy, "127.0.0.1", 0, provider)
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        load = Load(http.server_port, policy.client_timeout)
        load.engine, load.gate = engine, gate  # pyright: ignore[reportAttributeAccessIssue]
        try:
            assert eventually(lambda: engine.is_healthy)
            yield load
        finally:
            http.shutdown()
            thread.join()
            http.server_close()
            engine.stop_and_join()


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if condition():
                return True
        except OSError:
            pass
        time.sleep(0.02)
    return False

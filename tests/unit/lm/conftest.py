"""`nibble serve` of a tiny model, for the tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlx_lm import server as upstream

from mlx_nibble.lm.serving.run import checked_serving
from tests.soak import __main__ as soak
from tests.soak.clients import Load
from tests.support.served import DEFAULTS, serving


@pytest.fixture(scope="module")
def patched() -> Iterator[None]:
    with checked_serving(DEFAULTS, upstream):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return soak.tiny(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def load(patched, folder) -> Iterator[Load]:
    with serving(folder) as load:
        yield load

"""mlx_lm.server, unpatched, with accelerated models: its own handler, over HTTP."""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import server
from mlx_lm.utils import quantize_model

from mlx_nibble import lm
from mlx_nibble import nn as ours_nn
from tests.support import families, model_folders, tiny_models

pytestmark = pytest.mark.slow

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", params=families.FAMILIES)
def folder(request, tmp_path_factory) -> Path:
    sizes = {"vocab_size": model_folders.VOCABULARY}
    if request.param != "deepseek_v3":
        sizes["head_dim"] = 32  # with 16, gemma3 generates nothing
    path = tmp_path_factory.mktemp("served") / "tiny"
    model = tiny_models.build(request.param, **sizes)
    config = tiny_models.config(request.param, **sizes)
    model, config = quantize_model(model, config, families.GROUP_SIZE, 4)
    return model_folders.write(path, model, config)


@pytest.fixture
def provide(monkeypatch) -> Callable[..., server.ModelProvider]:
    """Return the server that mlx_lm.server's command line makes, before it listens."""

    def provider(*arguments: str) -> server.ModelProvider:
        made = []
        command = ["mlx_lm.server", "--log-level", "ERROR", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(server, "run", lambda host, port, it: made.append(it))
        server.main()
        return made[0]

    return provider


@contextmanager
def serving(provider: server.ModelProvider) -> Iterator[Ask]:
    generator = server.ResponseGenerator(provider, server.LRUPromptCache(10))
    handler = partial(server.APIHandler, generator, system_fingerprint="test")
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()

    def ask(prompt: str, **options: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{http.server_port}/v1/completions",
            json.dumps({"prompt": prompt, "logprobs": True, **options}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    try:
        yield ask
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
        generator.stop_and_join()


def tokens_of(answer: dict[str, Any]) -> list[int]:
    choice = answer["choices"][0]
    return [token["id"] for token in choice["logprobs"]["content"]]


def session(ask: Ask) -> list[list[int]]:
    """Send greedy and sampled requests, one with a cached prefix, and two at once."""
    answers = [
        ask("the hen", max_tokens=9),
        ask("the hen", max_tokens=9, temperature=0.8, seed=4),
        ask("the hen and the hen", max_tokens=7),
    ]
    with ThreadPoolExecutor() as pool:
        prompts = ("a hen", "the hen, the hen")
        answers += pool.map(lambda prompt: ask(prompt, max_tokens=8), prompts)
    return [tokens_of(answer) for answer in answers]


@pytest.mark.parametrize("drafts", [False, True])
def test_it_answers_as_without_us(folder, provide, drafts):
    options = ("--draft-model", str(folder)) if drafts else ()
    answers = []
    for loading in (nullcontext, lm.accelerated_loading):
        provider = provide("--model", str(folder), *options)
        with loading(), serving(provider) as ask:
            answers.append(session(ask))
            kinds = {type(module) for module in provider.model.modules()}
        assert (ours_nn.QuantizedLinear in kinds) == (loading is not nullcontext)
    stock, ours = answers
    assert ours == stock
    # At most 41: a sampled end of text may come early.
    assert all(stock) and sum(map(len, stock)) > 30

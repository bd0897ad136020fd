"""Requests that a server gets: good ones, odd ones and bad ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

WORDS = "the hen and a hen in the pen then an end of it all".split()


def good(rng: random.Random, longest: int) -> tuple[str, dict[str, Any]]:
    """Return a path and a body whose answer depends on nothing else."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 24)))
    body: dict[str, Any] = {"max_tokens": rng.randint(1, longest)}
    if rng.random() < 0.15:
        body |= {"temperature": 0.8, "seed": rng.randint(0, 3), "top_k": 5}
    if rng.random() < 0.2:
        body |= {"repetition_penalty": 1.2}
    if rng.random() < 0.2:
        body |= {"stop": ["hen"]}
    if rng.random() < 0.5:
        return "/v1/completions", {"prompt": text, **body}
    return "/v1/chat/completions", {
        "messages": [{"role": "user", "content": text}],
        **body,
    }


def _fields() -> Iterator[tuple[str, Callable[[random.Random], Any]]]:
    """Yield fields with values that no server may accept."""

    def of(*values: Any) -> Callable[[random.Random], Any]:
        return lambda rng: rng.choice(values)

    yield "stop", of(5, [5], [[]], {}, [None], True)
    yield "seed", of(10**30, -(10**30), "5", 1.5, [])
    yield "top_k", of(-1, "all", 2.5, [])
    yield "temperature", of(-1, "hot", [], True, 10**400)
    yield "top_p", of(-0.1, 1.1, 10**9, "x")
    yield "max_tokens", of(0, -1, 1.5, "x", True)
    yield "logit_bias", lambda rng: {str(rng.choice([10**6, 10**30, -1, "x"])): 1}
    yield "logit_bias", of([], 5, {"1": "x"}, {"1": 1e300})
    yield "repetition_context_size", of(-1, "x", [])
    yield "model", of("/etc", "../x", "http://127.0.0.1/x", "someone/model", 5, [])
    yield "adapters", of("/etc", 5, [])
    yield "draft_model", of("/etc", 5)
    yield "stream", of(1, "yes", [])
    yield "stream_options", of(5, [], {"include_usage": 5})
    yield "top_logprobs", of(-2, 12, "x")
    yield "chat_template_kwargs", of(5, [], {"tokenize": False})


FIELDS = list(_fields())
MESSAGES = [
    5, [], {}, "hi", [5], [[]], [{}], [{"role": 5}], [{"role": "user", "content": 5}],
    [{"role": "user", "content": [5]}], [{"role": "user", "content": [{"type": "x"}]}],
    [{"role": "user", "content": "x", "tool_calls": 5}],
]  # fmt: skip
BODIES = [
    b"", b"{", b"[]", b"5", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000,
    b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "seed": 1' + b"0" * 5000,
]  # fmt: skip


def bad(rng: random.Random) -> tuple[str, bytes]:
    """Return a path and a body that must get a status from 400 to 499."""
    kind = rng.random()
    if kind < 0.2:
        return "/v1/completions", rng.choice(BODIES)
    if kind < 0.4:
        body = {"messages": rng.choice(MESSAGES)}
        return "/v1/chat/completions", json.dumps(body).encode()
    if kind < 0.5:
        prompt = rng.choice(["", [], ["a"], [1, 2], 5, {}, "hen " * 20_000])
        return "/v1/completions", json.dumps({"prompt": prompt}).encode()
    name, value = rng.choice(FIELDS)
    return "/v1/completions", json.dumps({"prompt": "a", name: value(rng)}).encode()


HEADS = [
    b"garbage\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"PUT /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    b"GET /health HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n",
] + [
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + line + b"\r\n\r\n{}"
    for line in (
        b"Content-Length: 1000000000000000",
        b"Content-Length: -1",
        b"Content-Length: two",
        b"Content-Length: 2\r\nContent-Length: 3",
        b"Transfer-Encoding: chunked",
    )
]

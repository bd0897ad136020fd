"""Limits, keys, counts and the end of `nibble serve`; OpenAI's own clients."""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler
from typing import Any

import pytest
from mlx_lm import server as upstream

from mlx_nibble.lm.serving.gate import Gate
from mlx_nibble.lm.serving.policy import Policy, add_options, from_options
from mlx_nibble.lm.serving.refusal import Refusal
from mlx_nibble.lm.serving.sockets import Server
from tests.soak import __main__ as soak
from tests.soak.clients import Load, read
from tests.support.served import eventually, serving

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
# An end of text is impossible: the answer is as long as its request says.
# The tokens 0 and 1 end an answer.
ENDLESS: dict[str, Any] = {"prompt": "the hen", "logit_bias": {"0": -100, "1": -100}}


pytestmark = pytest.mark.usefixtures("patched")


def post(load: Load, path: str = TEXT, **body: Any) -> tuple[int, Any]:
    status, answer = load.post(path, json.dumps(body).encode())
    return status, json.loads(answer)


def get(load: Load, path: str, *headers: str) -> tuple[int, str, bytes]:
    """Return status, headers and body."""
    lines = "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers])
    with load.connect(60) as connection:
        connection.sendall(f"{lines}\r\n\r\n".encode())
        data = b""
        while part := connection.recv(1 << 16):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), body


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("n", 2, 1),
        ("n", True, 1),
        ("best_of", 3, 1),
        ("echo", True, False),
        ("suffix", "end", ""),
        ("modalities", ["text", "audio"], ["text"]),
        ("tool_choice", "required", "auto"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}, "none"),
        ("functions", [{"name": "f"}], []),
        ("web_search_options", {}, None),
        ("audio", {"voice": "x"}, None),
    ],
)
def test_what_would_change_the_answer_is_refused(load, name, value, right):
    short = {"prompt": "the hen", "max_tokens": 2}
    status, answer = post(load, **short, **{name: value})
    assert status == 400 and answer["error"]["param"] == name
    assert post(load, **short, **{name: right})[0] == 200


@pytest.mark.parametrize("route", ["/v1/embeddings", "/v1/responses"])
def test_routes_that_are_not_supported(load, route):
    status, answer = post(load, route, input="a")
    assert status == 400 and "not supported" in answer["error"]["message"]


def test_no_tools_if_the_request_says_so(load):
    messages = [{"role": "user", "content": "hen"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    asked: dict[str, Any] = {"messages": messages, "max_tokens": 2}
    without = post(load, CHAT, **asked)[1]["usage"]
    none = post(load, CHAT, **asked, tools=tools, tool_choice="none")[1]["usage"]
    assert none["prompt_tokens"] == without["prompt_tokens"]


def test_the_number_of_requests_is_bounded(folder):
    with serving(folder, policy=Policy(max_requests=2)) as load:
        gate = load.gate
        with gate.request(), gate.request():
            with load.connect() as connection:
                body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
                connection.sendall(load.head(TEXT, len(body)) + body)
                answer = connection.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.0 503 ")
            assert b"\r\nRetry-After: 2\r\n" in answer
            assert get(load, "/health")[0] == 200
        assert post(load, prompt="a", max_tokens=1)[0] == 200
        assert gate.open == 0


def test_the_number_of_requests_of_a_client_is_bounded(folder):
    with serving(folder, policy=Policy(max_client_requests=2)) as load:
        gate = load.gate
        with gate.request("127.0.0.1"), gate.request("elsewhere"):
            assert post(load, prompt="a", max_tokens=1)[0] == 200
            with gate.request("127.0.0.1"):
                status, answer = post(load, prompt="a", max_tokens=1)
        assert status == 429
        assert answer["error"]["code"] == "rate_limit_exceeded"
        assert post(load, prompt="a", max_tokens=1)[0] == 200
        assert gate.open == 0 and not gate._of_client


def test_a_gate_counts_and_closes():
    gate = Gate(1)
    with pytest.raises(KeyError), gate.request():
        assert not gate.wait_until_empty(0.01)
        with pytest.raises(Refusal, match="too many"), gate.request():
            pass
        raise KeyError
    assert gate.wait_until_empty(0) and gate.open == 0
    gate.close()
    with pytest.raises(Refusal, match="is ending"), gate.request():
        pass


def test_an_answer_has_a_bound_of_tokens(folder):
    with serving(folder, policy=Policy(max_request_tokens=5)) as load:
        for asked, got in ((3, 3), (5, 5), (900, 5)):
            usage = post(load, **ENDLESS, max_tokens=asked)[1]["usage"]
            assert usage["completion_tokens"] == got


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_a_bound_of_time(folder, stream):
    with serving(folder, policy=Policy(request_timeout=1e-9)) as load:
        body = json.dumps({**ENDLESS, "max_tokens": 20_000, "stream": stream}).encode()
        status, answer = load.post(TEXT, body)
        last = answer.strip().splitlines()[-1].removeprefix(b"data: ")
        assert "more than 1e-09 seconds" in json.loads(last)["error"]["message"]
        assert status == (200 if stream else 504)
        assert eventually(lambda: not load.engine._running or _idle(load))
        assert load.engine.is_healthy


def _idle(load: Load) -> bool:
    return all(flight.done for flight in load.engine._running)


@pytest.mark.parametrize(
    ("header", "right"),
    [
        ("Authorization: Bearer secret", True),
        ("authorization: bearer  secret", True),
        ("Authorization: Bearer wrong", False),
        ("Authorization: secret", False),
        ("Authorization: Basic secret", False),
        ("Authorization: Bearer \udc80", False),
        ("X-Nothing: 1", False),
    ],
)
def test_a_key_is_required(locked, header, right):
    header = header.encode("utf-8", "surrogateescape").decode("latin-1")
    lines = f"Host: localhost\r\n{header}\r\n\r\n".encode("latin-1")
    for head in (b"GET /metrics", b"GET /v1/models", b"POST /v1/completions"):
        with locked.connect(60) as connection:
            connection.sendall(head + b" HTTP/1.1\r\n" + lines)
            status, body = read(connection)
        if right:
            assert status in (200, 411)  # a POST of no body
        else:
            assert status == 401
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
    assert get(locked, "/health")[0] == 200  # a supervisor has no key


def test_a_key_may_be_any_text():
    policy = Policy(api_key="s\u00e9cret")
    assert policy.allows_key("Bearer s\u00e9cret".encode().decode("latin-1"))
    assert not policy.allows_key("Bearer \u00e9")
    assert Policy().allows_key(None)


@pytest.fixture(scope="module")
def locked(folder) -> Iterator[Load]:
    with serving(folder, policy=Policy(api_key="secret")) as load:
        yield load


def counts(load: Load) -> dict[str, float]:
    status, head, body = get(load, "/metrics")
    assert status == 200 and "Content-Type: text/plain; version=0.0.4" in head
    lines = [s for s in body.decode().splitlines() if not s.startswith("#")]
    return {name: float(n) for name, n in (s.rsplit(" ", 1) for s in lines)}


def test_counts_for_prometheus(folder):
    with serving(folder) as load:
        usage = post(load, prompt="the hen", max_tokens=7)[1]["usage"]
        again = post(load, prompt="the hen and", max_tokens=3)[1]["usage"]
        assert post(load, prompt="", max_tokens=7)[0] == 400
        assert get(load, "/nothing/at/all")[0] == 404
        found = counts(load)
    total = usage["completion_tokens"] + again["completion_tokens"]
    assert found["nibble_generated_tokens_total"] == total
    prompts = usage["prompt_tokens"] + again["prompt_tokens"]
    assert found["nibble_prompt_tokens_total"] == prompts
    kept = again["prompt_tokens_details"]["cached_tokens"]
    assert found["nibble_prompt_tokens_cached_total"] == kept
    answers = 'nibble_answers_total{route="%s",status="%s"}'
    assert found[answers % (TEXT, 200)] == 2
    assert found[answers % (TEXT, 400)] == 1
    assert found[answers % ("other", 404)] == 1  # a stranger's path is no label
    assert found["nibble_request_seconds_count"] == 3
    assert found["nibble_first_token_seconds_count"] == 2
    assert found["nibble_requests_open"] == found["nibble_requests_waiting"] == 0
    assert found["nibble_healthy"] == 1
    assert found["nibble_prompt_cache_sequences"] == 2
    assert found["nibble_prompt_cache_bytes"] > 0
    assert found["nibble_mlx_active_bytes"] > 0


def test_it_is_ill_until_it_takes_requests(folder, monkeypatch):
    loading = threading.Event()
    original = upstream.ModelProvider.load_default

    def slow(self):
        loading.wait(60)
        original(self)

    monkeypatch.setattr(upstream.ModelProvider, "load_default", slow)
    timer = threading.Timer(60, loading.set)  # whatever fails
    timer.start()

    seen = []
    with monkeypatch.context() as patch:
        # The helper waits until the server is well: look before.
        patch.setattr(
            "tests.support.served.eventually",
            lambda condition: seen.append(condition()) or loading.set() or True,
        )
        with serving(folder) as load:
            assert seen == [False]
            assert eventually(lambda: get(load, "/health")[0] == 200)
    timer.cancel()


class Process:
    """`nibble serve` in a process of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "mlx_nibble", "serve", "--model", str(folder)]
        command += ["--port", str(self.port), *flags]
        self.server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.load = Load(self.port, 30)
        assert eventually(lambda: soak.get(self.load, "/health") == 200)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.kill()
        self.server.communicate()


def ask_for(load: Load, tokens: int) -> tuple[int, bytes]:
    body = {**ENDLESS, "max_tokens": tokens, "stream": True}
    return load.post(TEXT, json.dumps(body).encode())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_end_before_the_server_does(folder, number):
    with Process(folder) as process, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask_for, process.load, 4000) for _ in range(3)]
        assert eventually(lambda: "nibble_requests_open 3.0" in metrics(process.load))
        process.server.send_signal(number)
        answers = [future.result() for future in asked]
        assert process.server.wait(60) == 0
        for status, body in answers:
            assert status == 200 and body.rstrip().endswith(b"data: [DONE]")
        assert process.server.stderr is not None
        assert "Traceback" not in process.server.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("twice", [False, True])
def test_the_end_has_a_bound(folder, twice):
    flags = [] if twice else ["--shutdown-timeout", "0.001"]
    with Process(folder, *flags) as process, ThreadPoolExecutor(8) as pool:
        # Thousands of tokens take seconds.
        asked = [pool.submit(ask_for, process.load, 4000) for _ in range(8)]
        assert eventually(lambda: "nibble_requests_open 8.0" in metrics(process.load))
        process.server.terminate()
        if twice:
            time.sleep(0.05)
            process.server.terminate()
        assert process.server.wait(60) == 0
        ends = [future.result()[1].rstrip() for future in asked]
    assert any(not end.endswith(b"[DONE]") for end in ends)


def test_an_interrupt_frees_a_connection_once(monkeypatch):
    """Ctrl-C may come when the connection's thread has begun."""
    begin = ThreadingHTTPServer.process_request

    def interrupted(self, *connection):
        begin(self, *connection)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "process_request", interrupted)
    failed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    server = Server(socket.AF_INET, ("127.0.0.1", 0), 2)
    server.RequestHandlerClass = BaseRequestHandler
    with socket.create_connection(server.server_address):
        with pytest.raises(KeyboardInterrupt):
            server.handle_request()
    server.server_close()  # waits for the thread
    assert not failed
    assert [server._free.acquire(blocking=False) for _ in range(3)] == [1, 1, 0]


def metrics(load: Load) -> str:
    return get(load, "/metrics")[2].decode()


def test_the_key_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("NIBBLE_API_KEY", "secret")
    parser = argparse.ArgumentParser()
    add_options(parser)
    made = from_options(parser.parse_args([]))
    assert made.api_key == "secret" and "secret" not in repr(made)
    assert "secret" not in parser.format_help()


# OpenAI's own package.


@pytest.fixture(scope="module")
def client(locked) -> Any:
    openai = pytest.importorskip("openai")
    url = f"http://127.0.0.1:{locked.port}/v1"
    return openai.OpenAI(base_url=url, api_key="secret")


def test_openai_chats_and_completes(client, folder):
    messages = [{"role": "user", "content": "the hen"}]
    asked: dict[str, Any] = {"model": str(folder), "max_tokens": 8}
    whole = client.chat.completions.create(messages=messages, **asked)
    parts = client.chat.completions.create(messages=messages, stream=True, **asked)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == (whole.choices[0].message.content or "")
    assert whole.usage.completion_tokens == 8
    text = client.completions.create(prompt="the hen", temperature=0, n=1, **asked)
    assert text.choices[0].finish_reason == "length"


def test_openai_lists_models(client, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    assert [model.id for model in client.models.list()] == [str(folder)]


def test_openais_errors(client, folder, locked):
    import openai

    asked: dict[str, Any] = {"model": str(folder), "prompt": "the hen"}
    for wrong in ({"n": 2}, {"echo": True}, {"max_tokens": -1}, {"prompt": "a" * 2000}):
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(**{**asked, **wrong})
        assert re.search(r"\w", error.value.body["message"])  # pyright: ignore
    with pytest.raises(openai.NotFoundError):
        client.completions.create(**{**asked, "model": "/etc"})
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=str(folder), input="a")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with locked.gate.request():
        assert client.completions.create(**asked, max_tokens=1)


def test_a_stream_that_is_left_frees_its_place(client, folder, locked):
    asked: dict[str, Any] = {"model": str(folder), "prompt": "the hen"}
    asked |= {"max_tokens": 1000, "logit_bias": {"0": -100, "1": -100}}
    with client.completions.create(stream=True, **asked) as stream:
        next(iter(stream))
    assert eventually(lambda: locked.gate.open == 0)

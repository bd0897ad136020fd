"""`nibble serve` under requests of strangers: over HTTP, with the real engine."""

from __future__ import annotations

import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm import server as upstream

from mlx_nibble import lm
from mlx_nibble.lm.serving.fit import Capacity
from mlx_nibble.lm.serving.policy import Policy
from mlx_nibble.lm.serving.refusal import Refusal
from mlx_nibble.lm.serving.run import run
from mlx_nibble.lm.serving.schema import Chat, Completion
from tests.soak import __main__ as soak
from tests.soak import requests
from tests.soak.clients import Load, read, text_of
from tests.support.served import eventually, provider_of, serving

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
HEN = {"prompt": "the hen", "max_tokens": 12}


pytestmark = pytest.mark.usefixtures("patched")


def ask(load: Load, path: str = TEXT, **body: Any) -> str:
    return text_of(*load.post(path, json.dumps(body).encode()))


def refusal(load: Load, path: str, body: bytes) -> tuple[int, str]:
    status, answer = load.post(path, body)
    error = json.loads(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.count(b"\n") == 1 and "Traceback" not in error["message"]
    return status, error["message"]


def raw(load: Load, data: bytes) -> tuple[int, bytes]:
    with load.connect(30) as connection:
        connection.sendall(data)
        return read(connection)


@pytest.mark.parametrize("name", sorted({name for name, _ in requests.FIELDS}))
def test_a_wrong_field_is_refused_by_name(load, name):
    rng = random.Random(4)
    for field, value in requests.FIELDS:
        for _ in range(8 if field == name else 0):
            body = json.dumps({**HEN, name: value(rng)}).encode()
            status, message = refusal(load, TEXT, body)
            assert status in (400, 404) and name in message
    assert load.engine.is_healthy


@pytest.mark.parametrize("messages", requests.MESSAGES)
def test_wrong_messages_are_refused(load, messages):
    body = json.dumps({"messages": messages}).encode()
    assert refusal(load, CHAT, body)[0] == 400


@pytest.mark.parametrize("body", requests.BODIES, ids=lambda b: repr(b[:12]))
def test_what_is_no_json_object_is_refused(load, body):
    assert refusal(load, TEXT, body)[0] == 400


@pytest.mark.parametrize("prompt", ["", [], ["a"], [1, 2], 5, {}, None, "\ud800"])
def test_a_prompt_is_a_text_of_some_tokens(load, prompt):
    assert refusal(load, TEXT, json.dumps({"prompt": prompt}).encode())[0] == 400


def test_a_prompt_fits_the_context(load):
    status, message = refusal(load, TEXT, b'{"prompt": "%s"}' % (b"a" * 1024))
    assert status == 400 and "1024 is the limit" in message
    answer = ask(load, prompt="a" * 1020, max_tokens=10**12, logit_bias={"2": -1e6})
    assert answer.endswith(("(length)", "(stop)"))


def test_a_sequence_fits_the_memory(load):
    ask(load, **HEN)  # the model is loaded
    capacity = Capacity.of(load.engine.model_provider.model)
    # Keys and values in float32: 3 layers, 2 heads of 32.
    assert capacity.bytes_per_token == 2 * 4 * 3 * 2 * 32
    assert (capacity.vocabulary, capacity.context) == (320, 1024)
    args = _arguments()
    args.max_tokens, args.logits = 10**9, upstream.LogitsProcessorArguments(*7 * [None])
    small = Capacity(320, None, 1000.0, 50_000)
    small.fit([1] * 40, args)
    assert args.max_tokens == 10
    with pytest.raises(Refusal, match="50 is the limit"):
        small.fit([1] * 50, args)


def test_a_model_that_cannot_be_probed_is_served():
    class Odd:
        layers = ()

    assert Capacity.of(Odd()).bytes_per_token == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"top_k": 10**9},
        {"top_k": 320},
        {"repetition_context_size": 10**30, "repetition_penalty": 1.0},
        {"presence_context_size": 2**31, "presence_penalty": 0},
        {"logit_bias": {}},
        {"logit_bias": {"319": 0}},
        {"stop": ""},
        {"stop": []},
        {"stop": None},
        {"temperature": 1e-300},
        {"max_tokens": None, "max_completion_tokens": 12},
        {"stream": True, "stream_options": {}},
        {"stream": True, "stream_options": {"include_usage": False}},
        {"model": "default_model"},
        {"unknown": [[[[]]]]},
    ],
    ids=str,
)
def test_what_changes_nothing_changes_nothing(load, odd):
    assert ask(load, **{**HEN, **odd}) == ask(load, **HEN)


@pytest.mark.parametrize(
    "odd", [{"seed": -5}, {"temperature": 1e300}, {"top_p": 1e-300}, {"top_k": 320}]
)
def test_odd_sampling_samples(load, odd):
    assert ask(load, **{**HEN, "temperature": 0.5, **odd})


@pytest.mark.parametrize(
    "name", ["repetition_penalty", "presence_penalty", "frequency_penalty"]
)
def test_penalties_do_not_depend_on_earlier_requests(load, name):
    ask(load, **HEN)  # the model is loaded
    text = f"hen {name} hen"
    tokens = load.engine.model_provider.tokenizer.encode(text)
    # Letters of the prompt are likely, but for the penalty.
    body = {"prompt": text, "logit_bias": {str(token): 60.0 for token in tokens}}
    body |= {"max_tokens": 16, name: 90.0}
    alone = ask(load, **body, seed=1)  # not in a batch, and no cache yet
    assert ask(load, **body, seed=1) == alone
    assert ask(load, **body) == alone


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", [Completion, Chat])
def test_no_body_is_a_fault_of_the_server(load, kind):
    path = TEXT if kind is Completion else CHAT
    message = st.fixed_dictionaries({"role": st.just("user"), "content": JSON})
    plain = HEN if kind is Completion else {"max_tokens": 2}

    @given(
        st.dictionaries(st.sampled_from(list(kind.model_fields)), JSON, max_size=3),
        st.lists(message, max_size=2),
    )
    @settings(max_examples=60, deadline=None)
    def never_500(body, messages):
        sent = {"messages": messages, **plain, **body}
        sent["max_tokens"] = 2
        status, answer = load.post(path, json.dumps(sent).encode())
        assert status == 200 or 400 <= status < 500, answer

    never_500()
    assert load.engine.is_healthy and ask(load, **HEN)


@pytest.mark.parametrize("head", requests.HEADS, ids=lambda head: repr(head[-30:]))
def test_what_is_no_request_is_refused(load, head):
    status, body = raw(load, head)
    assert 400 <= status < 500 and json.loads(body)["error"]["message"]


def test_routes(load):
    assert raw(load, b"GET /health HTTP/1.0\r\n\r\n") == (200, b'{"status": "ok"}')
    assert raw(load, b"HEAD /health?a=b HTTP/1.1\r\n\r\n") == (200, b"")
    assert raw(load, b"GET /v1/unknown HTTP/1.0\r\n\r\n")[0] == 404
    assert raw(load, b"GET http://[x/health HTTP/1.0\r\n\r\n")[0] == 404
    assert refusal(load, "/v1/unknown", b"{}")[0] == 404
    twice = b"GET /health HTTP/1.1\r\n\r\n" * 2  # one answer for each connection
    assert raw(load, twice) == (200, b'{"status": "ok"}')


def test_the_list_of_models_is_that_of_the_command_line(load, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    status, body = raw(load, b"GET /v1/models HTTP/1.0\r\n\r\n")
    (model,) = json.loads(body)["data"]
    assert status == 200 and model["id"] == str(folder)
    assert ask(load, model=model["id"], **HEN) == ask(load, **HEN)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("Host: localhost", 200),
        ("Host: 127.0.0.1:8080", 200),
        ("Host: [::1]:8080", 200),
        ("Host: rebound.example", 403),
        ("Host: 127.0.0.1.rebound.example:8080", 403),
        ("Host: [::1", 403),
        ("Host: localhost\r\nOrigin: http://localhost", 200),
        ("Host: localhost\r\nOrigin: http://elsewhere.example", 403),
        ("Host: localhost\r\nOrigin: null", 403),
        ("Host: localhost\r\nOrigin: http://[x", 403),
    ],
)
def test_pages_elsewhere_may_not_ask(load, lines, status):
    with load.connect(30) as connection:
        connection.sendall(f"GET /health HTTP/1.1\r\n{lines}\r\n\r\n".encode())
        answer = connection.recv(4096)
    assert answer.startswith(f"HTTP/1.0 {status} ".encode())
    assert b"Access-Control" not in answer


def test_pages_may_ask_if_the_command_line_says_so(folder):
    policy = Policy(allowed_origins=("http://app",), allowed_hosts=("proxy",))
    with serving(folder, policy=policy) as load, load.connect(30) as connection:
        head = b"OPTIONS / HTTP/1.1\r\nHost: proxy\r\nOrigin: http://app\r\n\r\n"
        connection.sendall(head)
        assert b"Access-Control-Allow-Origin: http://app\r\n" in connection.recv(4096)


def test_images_by_url_are_not_fetched(load):
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0.2)
        url = f"http://127.0.0.1:{inside.getsockname()[1]}/"
        part = {"type": "image_url", "image_url": {"url": url}}
        body = {"messages": [{"role": "user", "content": [part]}]}
        status, message = refusal(load, CHAT, json.dumps(body).encode())
        assert status == 400 and "--trust-requests" in message
        with pytest.raises(TimeoutError):
            inside.accept()


def test_a_trusted_request_names_its_model(folder, tmp_path):
    other = soak.tiny(tmp_path / "other")
    with serving(folder, policy=Policy(trust_requests=True)) as load:
        right = ask(load, **HEN)
        assert ask(load, model=str(other), **HEN) == right  # the same weights
        body = json.dumps({**HEN, "model": str(tmp_path)}).encode()
        status, message = refusal(load, TEXT, body)
        assert status == 404 and "cannot be loaded" in message
        assert ask(load, **HEN) == right


def test_silent_clients_hinder_nobody(folder):
    policy = Policy(client_timeout=1.0)
    with serving(folder, policy=policy) as load:
        silent = [load.connect(30) for _ in range(64)]
        assert ask(load, **HEN)
        for connection in silent:
            with connection:
                assert connection.recv(100) == b""
        head = load.head(TEXT, 50)
        assert raw(load, head + b"{")[0] == 408


def test_connections_have_a_bound(folder):
    policy = Policy(max_connections=2)
    with serving(folder, policy=policy) as load:
        first, second = load.connect(), load.connect()
        with first, second:
            assert eventually(lambda: raw(load, b"")[0] == 503)
        assert eventually(lambda: raw(load, b"GET /health HTTP/1.0\r\n\r\n")[0] == 200)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(folder, stream):
    with serving(folder) as load:
        sent = {
            **HEN,
            "max_tokens": 20_000,
            "stream": stream,
            "logit_bias": {"0": -100, "1": -100},
        }
        body = json.dumps(sent).encode()
        with load.connect() as connection:
            connection.sendall(load.head(TEXT, len(body)) + body)
            assert eventually(lambda: bool(load.engine._running))
        (flight,) = load.engine._running
        assert eventually(lambda: flight.done)
        assert len(flight.tokens) < 20_000


class Faulty:
    """A model's call that fails when it meets a token."""

    def __init__(self, load: Load, failing: int, times: int) -> None:
        self.model = load.engine.model_provider.model
        self.failing, self.times = failing, times
        self.kind = type(self.model)

    def __enter__(self):
        outer, call = self, self.kind.__call__

        def faulty(self, inputs, *args, **kwargs):
            meets = inputs.shape[1] == 1 and outer.failing in inputs[:, 0].tolist()
            if meets and outer.times > 0:
                outer.times -= 1
                raise RuntimeError("a fault of the test")
            return call(self, inputs, *args, **kwargs)

        self._call = call
        self.kind.__call__ = faulty
        return self

    def __exit__(self, *_):
        self.kind.__call__ = self._call


def tokens(load: Load, prompt: str) -> list[int]:
    body = {"prompt": prompt, "max_tokens": 24, "logprobs": True}
    answer = json.loads(load.post(TEXT, json.dumps(body).encode())[1])
    return [t["id"] for t in answer["choices"][0]["logprobs"]["content"]]


def test_a_fault_in_the_batch_ends_one_request(folder):
    prompts = ["the hen", "a hen in the pen", "the end of it all", "and then"]
    with serving(folder) as load:
        alone = [tokens(load, prompt) for prompt in prompts]
        others = {t for found in alone[1:] for t in found}
        own = [t for t in alone[0][3:-1] if t not in others]
        assert own, "the first answer needs a token of its own"

        def outcome(prompt: str) -> Any:
            body = {"prompt": prompt, "max_tokens": 24, "logprobs": True}
            body |= {"stream": True} if prompt == prompts[3] else {}
            status, answer = load.post(TEXT, json.dumps(body).encode())
            return status if status != 200 else text_of(status, answer)

        right = [outcome(prompt) for prompt in prompts]
        with Faulty(load, own[0], 10**6), ThreadPoolExecutor(4) as pool:
            found = list(pool.map(outcome, prompts))
        assert found == [500, *right[1:]]
        with Faulty(load, own[0], 1), ThreadPoolExecutor(4) as pool:
            assert list(pool.map(outcome, prompts)) == right
        assert load.engine.is_healthy
        assert [outcome(prompt) for prompt in prompts] == right


def test_the_server_ends_when_its_engine_has_ended(folder, monkeypatch):
    provider = provider_of("--model", str(folder))

    def end(*_):
        raise SystemExit("the test's end")

    with lm.accelerated_loading():
        monkeypatch.setattr(upstream.ResponseGenerator, "_generate", end)
        with pytest.raises(RuntimeError, match="engine has failed: the test's end"):
            run(Policy(), "127.0.0.1", 0, provider)


def test_a_model_that_does_not_load_ends_the_server(tmp_path):
    provider = provider_of("--model", str(tmp_path))
    with pytest.raises(RuntimeError, match="load"):
        run(Policy(), "127.0.0.1", 0, provider)


def test_a_sampler_is_not_compiled(load, monkeypatch):
    made = upstream._make_sampler(_arguments(), load.engine.model_provider.tokenizer)
    switched = []
    monkeypatch.setattr(mx, "disable_compile", lambda: switched.append("off"))
    monkeypatch.setattr(mx, "enable_compile", lambda: switched.append("on"))
    made(mx.zeros((1, 320)))
    assert switched == ["off", "on"]


def _arguments() -> Any:
    sampling = upstream.SamplingArguments(0.5, 1.0, 0, 0.0, 0.0, 0.1)
    none: Any = None
    return upstream.GenerationArguments(
        none, sampling, none, [], 1, 1, False, -1, None, None
    )

"""One connection: checks of its request, then mlx-lm's own answer."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable
from email.message import Message
from http import HTTPStatus
from typing import Any

from mlx_lm import server

from mlx_nibble.lm.serving.client import Client, Failed
from mlx_nibble.lm.serving.engine import Engine
from mlx_nibble.lm.serving.gate import Gate
from mlx_nibble.lm.serving.grammar import grammar_of
from mlx_nibble.lm.serving.metrics import TYPE as METRICS_TYPE
from mlx_nibble.lm.serving.models import DEFAULT_MODEL, hub_models, names_of
from mlx_nibble.lm.serving.policy import Policy
from mlx_nibble.lm.serving.refusal import Refusal, internal_error
from mlx_nibble.lm.serving.schema import Chat, Completion, check, read_json
from mlx_nibble.lm.serving.sockets import DeadlineReader, has_left

_ROUTES = {
    "/v1/completions": Completion,
    "/v1/chat/completions": Chat,
    "/chat/completions": Chat,
}
_PAGES = ("/health", "/metrics", "/v1/models")
# Routes of OpenAI's API whose absence deserves a better word than "unknown".
_NOT_SUPPORTED = ("/v1/embeddings", "/v1/responses")
# Seconds after which a client that was refused for lack of room may try again.
_RETRY = "2"


class Handler(server.APIHandler):
    """Answers the requests of one connection."""

    server_version = "nibble"
    sys_version = ""

    def __init__(
        self, engine: Engine, policy: Policy, gate: Gate, *args: Any, **kw: Any
    ) -> None:
        """Answer at once."""
        self._engine, self._policy, self._gate = engine, policy, gate
        self._started = False  # the answer
        super().__init__(engine, *args, **kw)

    def setup(self) -> None:
        """Bound the time of every read and write."""
        super().setup()
        self.connection.settimeout(self._policy.client_timeout)
        self._reader = DeadlineReader(self.connection, self._policy.client_timeout)
        self.rfile = io.BufferedReader(self._reader)
        self.response_generator: Any = Client(self._engine, self._look)

    def _look(self) -> None:
        """Raise the reason why the engine should drop the request, if there is one."""
        if has_left(self.connection):
            raise ConnectionError("the client has left")
        if time.monotonic() > self._deadline:
            most = self._policy.request_timeout
            raise Refusal(504, f"the answer took more than {most:g} seconds")

    def do_GET(self) -> None:
        """Answer a request that changes nothing."""
        self._guarded(self._get)

    def do_HEAD(self) -> None:
        """Answer a GET without its body."""
        self._guarded(self._get)

    def do_OPTIONS(self) -> None:
        """Answer what a browser asks before a request of a page elsewhere."""
        self._guarded(lambda: self._send(204, b""))

    def do_POST(self) -> None:
        """Answer a request to generate."""
        self._guarded(self._post)

    def _guarded(self, answer: Callable[[], None]) -> None:
        try:
            self._check_origin()
            answer()
        except (Failed, Exception) as error:
            cause = error.error if isinstance(error, Failed) else error
            # The client has left, or is too slow.
            if isinstance(cause, (ConnectionError, TimeoutError)):
                logging.info("%s: %s", self.client_address[0], cause)
                self.close_connection = True
            elif isinstance(cause, Refusal):
                self._refuse(cause)
            else:
                logging.error("A request failed.", exc_info=cause)
                self._refuse(internal_error())

    def _check_origin(self) -> None:
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        address: Any = self.server.server_address
        if not self._policy.allows_host(host, address[0]):
            raise Refusal(403, f"Host {host!r} is not this server; see --allowed-hosts")
        own = origin is not None and origin.partition("://")[2] == host
        if origin is not None and not own and not self._policy.allows(origin):
            raise Refusal(
                403, f"Origin {origin!r} is not allowed; see --allowed-origins"
            )

    def _check_key(self) -> None:
        if not self._policy.allows_key(self.headers.get("Authorization")):
            raise Refusal(
                401,
                "the header Authorization must be: Bearer, and this server's API key",
                code="invalid_api_key",
            )

    def _get(self) -> None:
        path = self.path.partition("?")[0]
        if path != "/health":
            self._check_key()
        if path == "/health":
            healthy = self._engine.is_healthy
            status = "ok" if healthy else "unavailable"
            body = json.dumps({"status": status}).encode()
            self._send(200 if healthy else 503, body)
        elif path == "/metrics":
            self._send(200, self._engine.metrics.text(), METRICS_TYPE)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            self._send_models(path.removeprefix("/v1/models").strip("/"))
        else:
            raise Refusal(404, f"there is nothing at {path!r}")

    def _post(self) -> None:
        path = self.path.partition("?")[0]
        self._check_key()
        if path in _NOT_SUPPORTED:
            raise Refusal(400, f"{path} is not supported by this server")
        if path not in _ROUTES:
            raise Refusal(404, f"there is nothing at {path!r}")
        self._deadline = time.monotonic() + self._policy.request_timeout
        body = read_json(self._read_body())
        cli = self._engine.cli_args
        defaults = {
            "max_tokens": cli.max_tokens,
            "num_draft_tokens": cli.num_draft_tokens,
            "temperature": cli.temp,
            "top_p": cli.top_p,
            "top_k": cli.top_k,
            "min_p": cli.min_p,
        }
        checked = check(_ROUTES[path], body, defaults)
        if not self._policy.trust_requests:
            self._check_trust(checked)
        if most := self._policy.max_request_tokens:
            checked.max_tokens = min(checked.max_tokens, most)
        # mlx-lm's handler reads these from the body itself, or from its attributes.
        self.body = body
        fields = checked.model_dump(
            exclude={"messages", "tools", "prompt", "stop", "response_format"}
        )
        vars(self).update(fields)
        self.adapter = checked.adapters
        self.requested_model = checked.model
        self.requested_draft_model = checked.draft_model
        make = self.handle_text_completions
        if isinstance(checked, Chat):
            make = self.handle_chat_completions
        if (schema := checked.json_schema) is not None:
            self.response_generator.grammar = grammar_of(schema)
        with self._gate.request(self.client_address[0]):
            self.handle_completion(make(), checked.stop)

    def _read_body(self) -> bytes:
        lengths = set(self.headers.get_all("Content-Length") or ())
        if "Transfer-Encoding" in self.headers or not lengths:
            raise Refusal(411, "the header Content-Length is required")
        text = lengths.pop().strip()
        if lengths or not (text.isascii() and text.isdecimal()):
            raise Refusal(400, "the header Content-Length must be one number")
        most = self._policy.max_body_bytes
        if len(text) > 18 or int(text) > most:
            raise Refusal(413, f"the body must have at most {most} bytes")
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._reader.restart()
        try:
            raw = self.rfile.read(int(text))
        except TimeoutError:
            raise Refusal(408, "the body came too slowly") from None
        if len(raw) < int(text):
            raise Refusal(400, "the body is shorter than Content-Length says")
        return raw

    def _check_trust(self, checked: Any) -> None:
        cli = self._engine.cli_args
        for name, own in (("model", cli.model), ("draft_model", cli.draft_model)):
            value = getattr(checked, name)
            if value != DEFAULT_MODEL and value not in names_of(own):
                raise Refusal(
                    404,
                    f"this server serves no {name} {value!r}; see --trust-requests",
                    name,
                    "model_not_found",
                )
        if checked.adapters is not None:
            raise Refusal(
                400, "adapters: are not allowed; see --trust-requests", "adapters"
            )
        if isinstance(checked, Chat):
            for url in checked.image_urls:
                if not url.startswith("data:"):
                    raise Refusal(
                        400,
                        "messages: an image must be a data URL; see --trust-requests",
                        "messages",
                    )

    def _send_models(self, wanted: str) -> None:
        names = names_of(self._engine.cli_args.model)[-1:]
        if self._policy.trust_requests:
            names += [name for name in hub_models() if name not in names]
        made = {"object": "model", "created": self.created}
        models = [{"id": name, **made} for name in names]
        if wanted:
            models = [model for model in models if model["id"].strip("/") == wanted]
        body = json.dumps({"object": "list", "data": models}).encode()
        self._send(200, body)

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self._set_cors_headers()
        if status in (429, 503):
            self.send_header("Retry-After", _RETRY)
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, refusal: Refusal) -> None:
        try:
            if self._started:  # a stream
                self.wfile.write(b"data: " + refusal.body() + b"\n")
                return
            self._headers_buffer: list[bytes] = []
            self._send(refusal.status, refusal.body())
        except OSError as error:
            logging.info("%s: %s", self.client_address[0], error)
        self.close_connection = True

    def end_headers(self) -> None:
        """Remember that errors can change the status no more."""
        super().end_headers()
        self._started = True

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Answer what is no HTTP request that we know."""
        unknown = code == HTTPStatus.NOT_IMPLEMENTED
        status = 405 if unknown else 400 if code >= 500 else int(code)
        self.command = getattr(self, "command", None) or "GET"
        self.request_version = "HTTP/1.0"  # not 0.9, whose answers have no status
        self.headers = getattr(self, "headers", None) or Message()
        self._refuse(Refusal(status, message or HTTPStatus(status).phrase))

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Count an answer, and log it."""
        path = getattr(self, "path", "").partition("?")[0]
        known = path in _ROUTES or path in _PAGES
        status = str(getattr(code, "value", code))
        self._engine.metrics.answers.labels(path if known else "other", status).inc()
        super().log_request(code, size)

    def log_message(self, format: str, *args: Any) -> None:
        """Log at a level that the command line can switch off."""
        text = (format % args).encode("unicode_escape").decode()
        logging.info("%s: %s", self.client_address[0], text)

    def _set_cors_headers(self) -> None:
        origin = self.headers.get("Origin")
        if origin is None or not self._policy.allows(origin):
            return
        self.send_header("Access-Control-Allow-Origin", origin)
        self.send_header("Vary", "Origin")
        self.send_header("Access-Control-Allow-Methods", "*")
        self.send_header("Access-Control-Allow-Headers", "*")

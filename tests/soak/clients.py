"""Clients of a server: each knows the right answers, or that there must be none."""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.soak import requests

_PATIENCE = 300  # seconds: the machine may be busy
_PAUSE = 0.02  # seconds between two requests of a client


@dataclass
class Load:
    """The server under load, and what has happened.

    Attributes:
        port: The server's, on this machine.
        timeout: The server's ``--client-timeout``.
        known: Good requests with their right answers.
        counts: Number of each outcome, by "kind: outcome".
        faults: Texts of the first unexpected outcomes.
    """

    port: int
    timeout: float
    known: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str, outcome: str, fault: object = None) -> None:
        with self._lock:
            self.counts[f"{kind}: {outcome}"] += 1
            if fault is not None and len(self.faults) < 20:
                self.faults.append(f"{kind}: {outcome}: {fault!s:.300}")
                print(self.faults[-1], file=sys.stderr, flush=True)

    def connect(self, patience: float = _PATIENCE) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), patience)

    def head(self, path: str, length: int) -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        with self.connect() as connection:
            connection.sendall(self.head(path, len(body)) + body)
            return read(connection)


def read(connection: socket.socket, piece: int = 1 << 16, pause: float = 0.0):
    """Return status and body of an answer; 0 if there is none."""
    data = b""
    while part := connection.recv(piece):
        data += part
        time.sleep(pause)
    head, _, body = data.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if head.startswith(b"HTTP/") else 0), body


def text_of(status: int, body: bytes) -> str:
    """Return an answer's text, whole or in pieces, and how it ended."""
    if status != 200:
        raise ValueError(f"status {status}: {body[:200]!r}")
    if not body.startswith((b"data:", b":")):
        answers = [json.loads(body)]
    else:
        lines = [s[6:] for s in body.decode().splitlines() if s.startswith("data: ")]
        if lines[-1] != "[DONE]":
            raise ValueError(f"a stream without an end: {lines[-1]}")
        answers = [json.loads(line) for line in lines[:-1]]
    choices = [answer["choices"][0] for answer in answers]
    texts = [c.get("text") or _said(c) for c in choices]
    return f"{''.join(texts)} ({choices[-1]['finish_reason']})"


def least_lead(body: bytes) -> float:
    """Return the least difference of the two likeliest tokens' logarithms."""
    tokens = json.loads(body)["choices"][0]["logprobs"]["content"]
    pairs = [[top["logprob"] for top in token["top_logprobs"]] for token in tokens]
    return min(abs(first - second) for first, second in pairs)


def _said(choice: dict[str, Any]) -> str:
    return (choice.get("message") or choice.get("delta") or {}).get("content") or ""


def good(load: Load, rng: random.Random) -> None:
    """Ask something known."""
    path, body, right = rng.choice(load.known)
    sent = json.dumps(body | {"stream": rng.random() < 0.5}).encode()
    _compare(load, "good", right, lambda: load.post(path, sent), body)


def slow(load: Load, rng: random.Random) -> None:
    """Ask something known, and write or read slowly."""
    path, body, right = rng.choice(load.known)
    sent = json.dumps(body | {"stream": True}).encode()
    sent = load.head(path, len(sent)) + sent

    def ask() -> tuple[int, bytes]:
        with load.connect() as connection:
            step = 1 + len(sent) // 8
            for start in range(0, len(sent), step):
                connection.sendall(sent[start : start + step])
                time.sleep(load.timeout / 40)
            return read(connection, piece=200, pause=0.01)

    _compare(load, "slow", right, ask, body)


def _compare(load: Load, kind: str, right: str, ask: Any, body: object) -> None:
    try:
        text = text_of(*ask())
    except (OSError, ValueError, KeyError, IndexError) as error:
        load.count(kind, "failed", f"{error!r} for {body}")
        return
    wrong = None if text == right else f"{text!r} instead of {right!r} for {body}"
    load.count(kind, "right" if wrong is None else "wrong", wrong)


def bad(load: Load, rng: random.Random) -> None:
    """Ask what must be refused, in a form that clients can read."""
    path, body = requests.bad(rng)
    try:
        status, answer = load.post(path, body)
        refused = 400 <= status < 500 and json.loads(answer)["error"]["message"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        load.count("bad", "failed", f"{error!r} for {body[:100]!r}")
        return
    fault = None if refused else f"{status} for {body[:200]!r}"
    load.count("bad", "refused" if refused else "accepted", fault)


def garbage(load: Load, rng: random.Random) -> None:
    """Send what is no request; the connection must end."""
    head = rng.choice(requests.HEADS)
    try:
        with load.connect() as connection:
            connection.sendall(head)
            status, _ = read(connection)
    except OSError as error:
        load.count("garbage", "failed", f"{error!r} for {head[:60]!r}")
        return
    refused = status == 0 or 400 <= status < 500
    load.count(
        "garbage",
        "refused" if refused else "accepted",
        None if refused else f"{status} for {head[:60]!r}",
    )


def cancelled(load: Load, rng: random.Random) -> None:
    """Leave before the answer is complete."""
    path, body, _ = rng.choice(load.known)
    sent = json.dumps(body | {"stream": rng.random() < 0.7, "max_tokens": 200}).encode()
    try:
        with load.connect() as connection:
            whole = load.head(path, len(sent)) + sent
            connection.sendall(whole[: rng.randint(1, 2 * len(whole))])
            connection.settimeout(rng.uniform(0.01, 1))
            connection.recv(rng.randint(1, 2000))
    except OSError:
        pass
    load.count("cancelled", "left")


def silent(load: Load, rng: random.Random) -> None:
    """Open 64 connections, send nothing or a few bytes, and wait for their end."""
    open_ones = []
    try:
        for _ in range(64):
            connection = load.connect(load.timeout * 4)
            open_ones.append(connection)
            connection.sendall(rng.choice([b"", b"P", b"POST / HTTP/1.1\r\n"]))
        for connection in open_ones:
            read(connection)
            load.count("silent", "closed")
    except OSError as error:
        load.count("silent", "failed", repr(error))
    finally:
        for connection in open_ones:
            connection.close()
    load.ended.wait(load.timeout)


def repeat(client: Any, load: Load, seed: int) -> None:
    """Run a client until the load ends."""
    rng = random.Random(seed)
    while not load.ended.wait(_PAUSE):
        client(load, rng)

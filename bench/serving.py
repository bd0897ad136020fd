"""Loads mlx_lm.server and `nibble serve` in turns with 8 clients of the openai package.

    python -m bench.serving MODEL_FOLDER
    python -m bench.serving MODEL_FOLDER --mixed --seconds 600

Each client asks for short answers, streamed or whole, one after another. With --mixed,
only `nibble serve` runs, and a third of the requests are cancelled, malformed or too
large. A good request must succeed. mlx_lm.server would not survive the malformed ones.
"""

from __future__ import annotations

import argparse
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import openai

from mlx_nibble.cli.console import err, filled, out

CLIENTS = 8
MOMENTS = 30  # at which memory is read
TOPICS = ["the sky", "a hen", "prime numbers", "rain", "Rome", "bees", "steel", "tides"]


class Load:
    """The counts of one run."""

    def __init__(self, url: str, mixed: bool, tokens: int) -> None:
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        self.mixed, self.tokens = mixed, tokens
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.lock = threading.Lock()
        self.taken = 0.0  # seconds, to the end of the last answer

    def count(self, name: str, number: int = 1) -> None:
        with self.lock:
            self.counts[name] += number

    def work(self, seed: int, end: float) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            kind = rng.choice(["cancelled", "malformed", "oversized", *6 * ["good"]])
            kind = kind if self.mixed else "good"
            if kind == "good":
                kind = rng.choice(["streamed", "whole"])
            try:
                getattr(self, kind)(rng)
                self.count(kind)
            except Exception as error:
                self.count(f"{kind}: {type(error).__name__}")
                self.faults.append(f"{kind}: {error}"[:200])

    def asked(self, rng: random.Random) -> dict[str, Any]:
        return {
            "model": "default_model",
            "messages": [{"role": "user", "content": f"Tell of {rng.choice(TOPICS)}."}],
            "max_tokens": self.tokens,
        }

    def whole(self, rng: random.Random) -> None:
        found = self.client.chat.completions.create(**self.asked(rng))
        assert found.usage is not None and found.choices[0].finish_reason
        self.count("tokens", found.usage.completion_tokens)

    def streamed(self, rng: random.Random) -> None:
        options = {"include_usage": True}
        parts = list(
            self.client.chat.completions.create(
                stream=True, stream_options=options, **self.asked(rng)
            )
        )
        assert parts[-1].usage is not None and parts[-2].choices[0].finish_reason
        self.count("tokens", parts[-1].usage.completion_tokens)

    def cancelled(self, rng: random.Random) -> None:
        message = {"role": "user", "content": f"Write on {rng.choice(TOPICS)}."}
        stream = self.client.chat.completions.create(
            model="default_model", messages=[message], max_tokens=400, stream=True
        )
        with stream:
            for _, _part in zip(range(rng.randrange(1, 6)), stream, strict=False):
                pass

    def malformed(self, rng: random.Random) -> None:
        wrong: dict[str, Any] = rng.choice(
            [{"n": 3}, {"stop": 5}, {"prompt": ""}, {"logit_bias": {"999999": 1}}]
        )
        asked: dict[str, Any] = {"model": "default_model", "prompt": "a"}
        try:
            self.client.completions.create(**{**asked, **wrong})
        except openai.BadRequestError:
            return
        raise ValueError(f"{wrong} was answered")

    def oversized(self, rng: random.Random) -> None:
        size = rng.choice([200_000, 20_000_000])
        try:
            self.client.completions.create(model="default_model", prompt="a b " * size)
        except (openai.BadRequestError, openai.APIStatusError):
            return
        raise ValueError("a prompt beyond all limits was answered")


@contextmanager
def serving(ours: bool, model: str) -> Iterator[tuple[subprocess.Popen, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = ["mlx_nibble", "serve"] if ours else ["mlx_lm", "server"]
    command = [sys.executable, "-m", *program, "--model", model, "--port", str(port)]
    server = subprocess.Popen([*command, "--log-level", "CRITICAL"])
    try:
        url = f"http://127.0.0.1:{port}"
        while server.poll() is None:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield server, f"{url}/v1"
    finally:
        server.terminate()
        server.wait(60)


def resident(server: subprocess.Popen) -> float:
    """Return the server's memory in MB."""
    command = ["ps", "-o", "rss=", "-p", str(server.pid)]
    return int(subprocess.run(command, capture_output=True).stdout) / 1024


def run(ours: bool, args: argparse.Namespace) -> tuple[Load, list[float]]:
    """Return the counts, and the server's memory at some moments."""
    seconds = args.seconds
    with serving(ours, args.model) as (server, url):
        load = Load(url, args.mixed, args.tokens)
        load.whole(random.Random(0))  # the model is loaded
        load.counts.clear()
        start = time.monotonic()
        end = start + seconds
        clients = [
            threading.Thread(target=load.work, args=(seed, end))
            for seed in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        memory = []
        for _ in range(MOMENTS):
            time.sleep(seconds / MOMENTS)
            memory.append(resident(server))
        for client in clients:
            client.join()
        load.taken = time.monotonic() - start
    return load, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--mixed", action="store_true")
    args = parser.parse_args()
    if args.mixed:
        load, memory = run(True, args)
        for name, number in sorted(load.counts.items()):
            out.print(f"{number:8} {name}")
        out.print("memory in MB:", ", ".join(f"{size:.0f}" for size in memory))
        third = MOMENTS // 3
        before, after = (
            median(part) for part in (memory[third:-third], memory[-third:])
        )
        out.print(f"its last third by its second: {after / before:.3f}")
        for fault in load.faults[:20]:
            out.print(f"FAILED {fault}")
        sys.exit(bool(load.faults))
    rates: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(args.rounds):
        for ours in (False, True):
            load, memory = run(ours, args)
            rates[ours].append(load.counts["tokens"] / load.taken)
            name = "nibble serve" if ours else "mlx_lm.server"
            err.print(
                f"{turn + 1}: {name}: {rates[ours][-1]:.1f} tokens/s, "
                f"{len(load.faults)} failures, {memory[0]:.0f} to {memory[-1]:.0f} MB"
            )
    stock, ours_rate = (median(rates[ours]) for ours in (False, True))
    cells = [f"{stock:.1f}", f"{ours_rate:.1f}", f"{ours_rate / stock:.2f}×"]
    header = ["clients", "mlx_lm.server, tokens/s", "nibble serve", "ratio"]
    out.print(filled(header, [[str(CLIENTS), *cells]]))


if __name__ == "__main__":
    main()

"""Load `nibble serve` with good, bad, cancelled and slow clients at once."""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from mlx_lm.utils import quantize_model

from tests.soak import clients, requests
from tests.soak.clients import Load
from tests.support import model_folders, tiny_models

# Seconds for the server's clients: short, so that silent ones come and go often.
_TIMEOUT = 4.0
_WARM_UP = 600.0
_FLAT = 1.1
# A batch changes logits by rounding. A tie between two tokens may then end otherwise.
_TIE = 0.02
# Clients at once.
_CLIENTS = {
    clients.good: 4,
    clients.bad: 2,
    clients.garbage: 1,
    clients.cancelled: 2,
    clients.slow: 1,
    clients.silent: 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="default: another each time")
    parser.add_argument("--model", type=Path, help="a folder (default: a tiny model)")
    parser.add_argument("--requests", type=int, default=60, help="good ones, to draw")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or tiny(Path(folder, "tiny"))
        result = soak(model, options.minutes * 60, seed, options.requests)
    print(json.dumps(result, indent=1) if options.json else summary(result))
    sys.exit(bool(result["failures"]))


def tiny(folder: Path) -> Path:
    """Write a tiny model."""
    sizes = {"vocab_size": model_folders.VOCABULARY, "head_dim": 32}
    model = tiny_models.build("llama", **sizes)
    config = tiny_models.config("llama", **sizes)
    with redirect_stdout(sys.stderr):  # mlx-lm prints
        model, config = quantize_model(model, config, 32, 4)
    config["max_position_embeddings"] = 1024
    return model_folders.write(folder, model, config)


def soak(model: Path, seconds: float, seed: int, count: int) -> dict:
    """Return the counts, the memory and the failures of a run."""
    rng = random.Random(seed)
    with serving(model) as (server, port):
        load = Load(port, _TIMEOUT)
        while len(load.known) < count:  # alone, so that nothing else matters
            path, body = requests.good(rng, longest=48)
            asked = json.dumps(body | {"top_logprobs": 2}).encode()
            answer = load.post(path, asked)
            if clients.least_lead(answer[1]) > _TIE:
                load.known.append((path, body, clients.text_of(*answer)))
        threads = [
            threading.Thread(target=clients.repeat, args=(client, load, rng.random()))
            for client, number in _CLIENTS.items()
            for _ in range(number)
        ]
        for thread in threads:
            thread.start()
        memory = list(watch(server, seconds))
        load.ended.set()
        for thread in threads:
            thread.join()
        died = server.poll() is not None
        health = 0 if died else get(load, "/health")
    failures = [*load.faults]
    if died or health != 200:
        failures.append(f"the server ended, or is ill: {server.poll()}, {health}")
    growth = growth_of(memory)
    if growth is not None and growth > _FLAT:
        failures.append(f"memory grew by a factor of {growth:.2f}")
    return {
        "seed": seed,
        "seconds": seconds,
        "counts": dict(sorted(load.counts.items())),
        "memory_mb": [round(m / 1e6, 1) for _, m in memory[:: len(memory) // 60 + 1]],
        "largest_mb": round(max(size for _, size in memory) / 1e6, 1),
        "growth_after_warm_up": growth,
        "failures": failures,
    }


@contextmanager
def serving(model: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run the server in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlx_nibble.cli", "serve", "--batch-invariant"]
    command += ["--model", str(model), "--port", str(port), "--log-level", "CRITICAL"]
    command += ["--client-timeout", str(_TIMEOUT)]
    server = subprocess.Popen(command)
    try:
        load = Load(port, _TIMEOUT)
        while server.poll() is None:  # it listens, or ends with an error
            try:
                if get(load, "/health") == 200:
                    break
            except OSError:
                time.sleep(0.2)
        yield server, port
    finally:
        server.terminate()
        server.wait(60)


def get(load: Load, path: str) -> int:
    with load.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return clients.read(connection)[0]


def watch(server: subprocess.Popen, seconds: float) -> Iterator[tuple[float, int]]:
    """Yield seconds since the start and the server's resident bytes."""
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds and server.poll() is None:
        found = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(server.pid)], capture_output=True
        )
        if found.stdout.strip():
            yield now, int(found.stdout) * 1024
        time.sleep(2)


def growth_of(memory: list[tuple[float, int]]) -> float | None:
    """Return the memory of the last quarter by that of the first, after the warm-up.

    Medians, for the number of open connections comes and goes. None if the run was too
    short.
    """
    sizes = [size for when, size in memory if when >= _WARM_UP]
    quarter = len(sizes) // 4
    if quarter < 10:
        return None
    return statistics.median(sizes[-quarter:]) / statistics.median(sizes[:quarter])


def summary(result: dict) -> str:
    """Return the result as a few lines."""
    lines = [f"{result['seconds']:.0f} s, seed {result['seed']}"]
    lines += [f"  {count:8} {name}" for name, count in result["counts"].items()]
    memory = result["memory_mb"]
    lines.append(f"  memory: {memory[0]} MB at first, {memory[-1]} MB at the end")
    return "\n".join([*lines, *(f"FAILED {text}" for text in result["failures"])])


if __name__ == "__main__":
    main()

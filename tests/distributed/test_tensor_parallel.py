"""Accelerated models in several processes, started by mlx.launch on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mlx_lm.utils import quantize_model

import mlx_nibble
from tests.distributed import rank
from tests.support import model_folders, tiny_models

LAUNCH = Path(sys.executable).with_name("mlx.launch")


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive free ports."""
    first = 40000 + os.getpid() % 10000
    while True:
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
            return first
        except OSError:
            first += count


def launch(ranks: int, *command: str, text: str = "") -> subprocess.CompletedProcess:
    """Run a module on loopback, with one thread for each rank for lack of cores."""
    ring = ["-n", str(ranks), "--backend", "ring", "--env", "NIBBLE_NUM_THREADS=1"]
    ring += ["--starting-port", str(free_ports(ranks))]
    arguments = [str(LAUNCH), *ring, "--", sys.executable, "-m", *command]
    return subprocess.run(
        arguments, input=text, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize(
    ("family", "ranks"), [("llama", 2), ("llama", 4), ("qwen3_moe", 2)]
)
def test_tokens_are_those_of_one_process(family, ranks):
    whole = rank.model(family)
    mlx_nibble.accelerate(whole)
    result = launch(ranks, "tests.distributed.rank", family)
    assert result.stdout, result.stderr
    found = json.loads(result.stdout)
    assert found["tokens"] == rank.tokens(whole)
    assert found["ranks"] == ranks and not found["kept"]
    assert {"QuantizedAllToShardedLinear", "QuantizedShardedToAllLinear"} <= {
        *found["kinds"]
    }


def test_a_killed_rank_ends_the_run_and_says_so(tmp_path):
    result = launch(2, "tests.distributed.rank", "llama", "1", str(tmp_path))
    assert result.stdout == ""
    assert "Node with rank 1 exited with code -9" in result.stderr
    # No process is left: mlx.launch ends the others, which can wait in MLX forever.
    processes = [int(file.name) for file in tmp_path.iterdir()]
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a model that divides between two processes, with a tokenizer."""
    sizes = rank.SIZES | {"vocab_size": model_folders.VOCABULARY}
    made = tiny_models.build("llama", **sizes)
    made, config = quantize_model(made, tiny_models.config("llama", **sizes), 32, 4)
    return model_folders.write(tmp_path_factory.mktemp("model") / "tiny", made, config)


def test_nibbles_chat_is_sharded_and_accelerated(folder):
    options = ["--model", str(folder), "--max-tokens", "8"]
    result = launch(2, "mlx_nibble.cli", "chat", *options, text="the hen\nq\n")
    assert "8 tokens" in result.stdout, result.stderr
    assert "exited with code" not in result.stderr

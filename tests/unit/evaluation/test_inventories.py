"""Inventories of GGUF files and of models on the Hub, from headers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlx_nibble.cli import main
from mlx_nibble.evaluation.gguf_inventory import read_gguf_inventory
from mlx_nibble.evaluation.inventory import read_inventory
from mlx_nibble.io.gguf.block_types import BLOCK_TYPES
from tests.support import model_folders
from tests.support.gguf_writer import tiny_llama


@pytest.fixture
def gguf(tmp_path) -> Path:
    path = tmp_path / "t.gguf"
    path.write_bytes(tiny_llama())
    return path


def test_a_gguf_file_is_counted_as_its_import(gguf, tmp_path):
    found = read_gguf_inventory(gguf)
    imported = read_inventory(model_folders.imported(tmp_path / "m"))
    assert found.parameters == imported.parameters
    assert found.kv_bytes_per_token == imported.kv_bytes_per_token > 0
    assert found.activation_bytes == imported.activation_bytes > 0
    # Q4_1 has the bits of the import; its Q8_0 has no biases, and F32 is in 32 bits.
    quarter = [row for row in found.rows if row.label == "Q4_1"]
    assert len(quarter) == 14
    assert all(8 * row.nbytes == 5 * row.parameters for row in quarter)
    assert all(8 * row.weights == 4 * row.parameters for row in quarter)


def test_each_block_type_states_its_width():
    for kind in BLOCK_TYPES.values():
        if kind.elements > 1:
            digits = int("".join(c for c in kind.name.partition("_")[0] if c.isdigit()))
            assert kind.elements * digits <= 8 * kind.nbytes


def test_inspect_takes_a_gguf_file(gguf, capsys):
    assert main(["inspect", str(gguf), "--layers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_cache"] > 0
    assert main(["inspect", str(gguf), "--what-if", "4:64"]) == 0
    assert main(["inspect", str(gguf), "--what-if", "mixed_3_6"]) == 1
    assert "for a folder" in capsys.readouterr().err
    gguf.write_bytes(b"GGUF")
    assert main(["inspect", str(gguf)]) == 1
    assert capsys.readouterr().err.startswith("nibble: [gguf] ")


@pytest.mark.parametrize(
    ("name", "gigabytes"), [("7b", 7), ("1T", 1000), ("0.5B", 0.5)]
)
def test_numbers_of_weights(name, gigabytes, capsys):
    assert main(["inspect", name, "--json"]) == 0
    rows = {row["format"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["int8, groups of 64"]["weights"] == gigabytes * 1e9


class Hub(BaseHTTPRequestHandler):
    """The routes of the Hub that a header needs; counts the bytes that it sends."""

    def __init__(self, folder: Path, sent: list[int], *args) -> None:
        self.folder, self.sent = folder, sent
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        file = self.folder / self.path.rpartition("/")[2]
        if "/resolve/" not in self.path or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = file.read_bytes()
        size = len(data)
        status = 200
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            data, status = data[int(first) : int(last) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes 0-{len(data)}/{size}")
        self.send_header("ETag", '"' + "a" * 40 + '"')
        self.send_header("X-Repo-Commit", "b" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
            self.sent.append(len(data))

    def log_message(self, format: str, *args) -> None: ...


@pytest.mark.slow
def test_a_model_of_the_hub_is_counted_without_its_weights(tmp_path):
    folder = model_folders.imported(tmp_path / "m")
    weights = folder / "model.safetensors"
    # The Hub's reader fetches 100,000 bytes at first.
    with weights.open("ab") as file:
        file.truncate(weights.stat().st_size + (1 << 20))
    (folder / "model.safetensors.index.json").unlink()
    sent: list[int] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder, sent)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{http.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
        }
        found, missing = (
            subprocess.run(
                [sys.executable, "-m", "mlx_nibble", "inspect", name, "--json"],
                env=environment,
                capture_output=True,
                text=True,
            )
            for name in ("me/it", "me/it2")
        )
        http.shutdown()
    assert found.returncode == 0, found.stderr
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - (1 << 20))
    here = read_inventory(folder)
    counted = json.loads(found.stdout)
    assert (counted["parameters"], counted["nbytes"]) == (here.parameters, here.nbytes)
    assert missing.returncode == 0  # this Hub has one model by all names
    assert sum(sent) < weights.stat().st_size + (1 << 20)

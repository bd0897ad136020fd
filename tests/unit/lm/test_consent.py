"""A model folder's Python code runs with consent only, whatever loads the folder."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from mlx_nibble import lm
from mlx_nibble.cli import main
from mlx_nibble.lm import checked
from tests.support import gptq_folders, model_folders


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return model_folders.imported(tmp_path_factory.mktemp("whole") / "m")


@pytest.fixture
def folder(whole, tmp_path, monkeypatch) -> Path:
    # transformers copies the code here, and runs the copy.
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return Path(shutil.copytree(whole, tmp_path / "m"))


def write_code(folder: Path, of: str) -> Path:
    """Let the model, or its tokenizer, run code that writes a file; return the file."""
    canary = folder.with_name(f"{of}_ran.txt")
    (folder / f"{of}_code.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "from mlx_lm.models.llama import Model, ModelArgs\n"
        f"open({str(canary)!r}, 'w').close()\n"
        "class Ours(PreTrainedTokenizerFast):\n    pass\n"
    )
    if of == "model":
        change(folder / "config.json", model_file="model_code.py")
    else:
        map_of_tokenizer = {"AutoTokenizer": [None, "tokenizer_code.Ours"]}
        change(
            folder / "tokenizer_config.json",
            tokenizer_class="Ours",
            auto_map=map_of_tokenizer,
        )
    return canary


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def serve(folder: str, *more: str) -> int:
    """Serve the folder, ask once, and end the server; return its exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlx_nibble.cli", "serve", "--model", folder]
    server = subprocess.Popen(
        [*command, "--port", str(port), *more], stderr=subprocess.DEVNULL
    )
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps({"prompt": "a", "max_tokens": 1}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(request, timeout=60).close()
                break
            except urllib.error.HTTPError:
                break  # it does not have the model
            except OSError:
                time.sleep(0.05)  # it does not listen yet
        server.send_signal(signal.SIGINT)
        return server.wait(60)
    finally:
        server.kill()


TEXT = ("--samples", "1", "--sequence-length", "8")
LOADING = {
    "load": lambda f, **trust: lm.load(f, **trust),
    "load_stock": lambda f, **trust: lm.load_stock(f, **trust),
    "load_as_it_is": lambda f, **trust: lm.load_as_it_is(f, **trust),
    "sharded_load": lambda f, **trust: lm.sharded_load(f, **trust),
}
COMMANDS = {
    "convert": lambda f, *more: main(
        ["convert", "-q", "--q-group-size", "32", f, f + "-out", *more]
        + ["--calibration", __file__, *TEXT]
    ),
    "eval": lambda f, *more: main(
        ["eval", f, "--reference", f, "--text", __file__, *TEXT, *more]
    ),
    "demo": lambda f, *more: main(
        ["demo", "--model", f, "--rounds", "1", "-m", "1", "--json", *more]
    ),
    "generate": lambda f, *more: main(
        ["generate", "--model", f, "--max-tokens", "1", "--prompt", "a", *more]
    ),
    "chat": lambda f, *more: main(["chat", "--model", f, *more]),
    # mlx_lm.benchmark runs a tokenizer's code without consent.
    "run": lambda f, *more: main(
        ["run", "benchmark", "--model", f, "-p", "4", "-g", "1", "-n", "1", *more]
    ),
    "serve": serve,
    "bench": lambda f, *more: main(
        ["bench", "model", f, "--json", "--seconds", "0.1", "--passes", "1"]
        + ["--context", "8", "--max-tokens", "2", *more]
    ),
}
# Commands that load no model.
READING = {
    "import": lambda f: main(["convert", f, f + "-out"]),
    "inspect": lambda f: main(["inspect", f, "--what-if", "4"]),
    "tune": lambda f: main(["tune", f, "--dry-run"]),
}


@pytest.mark.parametrize("of", ["model", "tokenizer"])
@pytest.mark.parametrize("entry", [*LOADING, *COMMANDS, *READING])
def test_no_entry_point_runs_a_folders_code(entry, of, folder, monkeypatch, capfd):
    canary = write_code(folder, of)
    # A person who would say yes to each question.
    monkeypatch.setattr("builtins.input", lambda *_: "q" if entry == "chat" else "y")
    try:
        {**LOADING, **COMMANDS, **READING}[entry](str(folder))
    except (ValueError, OSError, RuntimeError, SystemExit):
        pass
    assert not canary.exists()


def test_doctor_runs_no_code_of_the_folder_that_it_is_run_in(folder):
    """Nor does any command: the current folder is on no path of modules."""
    canary = write_code(folder, "model")
    for name in ("mlx_lm", "transformers", "numpy", "mlx"):
        shutil.copy(folder / "model_code.py", folder / f"{name}.py")
    program = Path(sys.executable).with_name("nibble")
    for command in (["doctor"], ["inspect", "."]):
        ended = subprocess.run([program, *command], cwd=folder, capture_output=True)
        assert ended.returncode == 0, ended.stderr
    assert not canary.exists()


@pytest.mark.parametrize("entry", COMMANDS)
def test_each_command_runs_it_with_consent(entry, folder, monkeypatch, capfd):
    canaries = [write_code(folder, of) for of in ("model", "tokenizer")]
    monkeypatch.setattr("builtins.input", lambda *_: "q")
    assert not COMMANDS[entry](str(folder), "--trust-remote-code")
    assert all(canary.exists() for canary in canaries)


@pytest.mark.parametrize("of", ["model", "tokenizer"])
def test_code_runs_with_consent(of, folder):
    canary = write_code(folder, of)
    trust: dict = {"trust_remote_code": True}
    lm.load(str(folder), **trust if of == "model" else {"tokenizer_config": trust})
    assert canary.exists()


def test_the_refusal_names_the_option(folder, capsys):
    for of in ("model", "tokenizer"):
        write_code(folder, of)
        assert main(["generate", "--model", str(folder), "--prompt", "a"]) == 1
        assert "say --trust-remote-code" in capsys.readouterr().err


@pytest.mark.parametrize("trust", [False, True])
def test_an_imported_folder_asks_for_consent_before_it_is_renamed(trust, tmp_path):
    stored = gptq_folders.tensors("llama", np.random.default_rng(0))
    source = gptq_folders.write(tmp_path / "m", stored)
    canary = write_code(source, "model")
    flags = ["--trust-remote-code"] * trust
    status = main(["convert", str(source), str(tmp_path / "out"), *flags])
    assert (status == 0) == trust == canary.exists() == (tmp_path / "out").exists()


def test_sharding_passes_consent_to_the_tokenizer(folder, monkeypatch):
    seen = []

    def stop(path, extra=None, **_):
        seen.append(dict(extra))
        raise ValueError("enough")

    monkeypatch.setitem(checked._originals, "_load_tokenizer", stop)
    for options in ({}, {"tokenizer_config": {}}, {"trust_remote_code": True}):
        with pytest.raises(ValueError, match="enough"):
            lm.sharded_load(str(folder), **options)
    assert [extra["trust_remote_code"] for extra in seen] == [False, False, True]

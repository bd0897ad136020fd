"""The `nibble` command as a user runs it: mostly in processes of its own."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import mlx.core as mx
import pytest

from mlx_nibble.bench import capsule
from mlx_nibble.cli import main
from tests.support import commands
from tests.support.gguf_writer import tiny_llama
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

SCHEMA = json.loads((ROOT / "docs" / "reference" / "capsule.schema.json").read_text())


def nibble(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlx_nibble.cli", *arguments],
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(tiny_llama())
    return path


@pytest.fixture(scope="module")
def folder(tiny) -> Path:
    out = tiny.parent / "tiny-mlx"
    result = nibble("convert", str(tiny), str(out))
    assert result.returncode == 0, result.stderr
    assert "quantized matrices: 14 of 4 bits, 1 of 8 bits" in result.stdout
    return out


def test_help_and_version():
    assert nibble("--help").stdout.startswith("usage: nibble COMMAND")
    assert nibble("--version").stdout.startswith("nibble 0.")
    assert nibble().returncode == 2
    for command in ("convert", "demo", "generate"):
        result = nibble(command, "--help")
        assert result.returncode == 0
        assert result.stdout.startswith(f"usage: nibble {command}")


def test_help_needs_neither_mlx_lm_nor_rich():
    program = (
        "import sys\n"
        "from mlx_nibble.cli import main\n"
        "main(['--help'])\n"
        "sys.exit(any(name in sys.modules for name in ('mlx_lm', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["cook"], 2, "nibble: there is no command 'cook'"),
        (["convert"], 2, "nibble convert: error: name one GGUF file"),
        (["convert", "a", "b", "--mlx-path", "c"], 2, "name one output folder"),
        (["convert", "a", "b", "--dtype", "int4"], 2, "invalid choice: 'int4'"),
        (["convert", "absent.gguf", "b"], 1, "SOURCE 'absent.gguf' does not exist."),
        (["convert", "-q", "absent.gguf", "b"], 1, "'absent.gguf' does not exist."),
        (["convert", "-d", "absent.gguf", "b"], 1, "'absent.gguf' does not exist."),
        (["inspect", "absent.gguf"], 1, "'absent.gguf' does not exist."),
        (["generate", "--model", "absent.gguf"], 1, "'absent.gguf' does not exist."),
        (["generate", "--model", "./absent"], 1, "--model './absent' does not exist."),
        (["serve", "--activations", "int4"], 2, "invalid choice: 'int4'"),
        (["demo", "--model", "absent"], 1, "[demo] --model 'absent' does not exist."),
        (["demo", "--rounds", "0"], 2, "must be at least 1"),
        (["chat", "--model"], 2, "nibble chat: error: argument --model: expected one"),
        (["convert", "-q", "./absent", "b"], 1, "SOURCE './absent' does not exist."),
        (["eval", "a", "--samples", "0"], 2, "--samples must be at least 1"),
        (["eval", "a", "--sequence-length", "1"], 2, "must be at least 2"),
        (["inspect", "7B", "--context", "-1"], 2, "--context must be at least 0"),
        (["bench", "kernels", "--seconds", "nan"], 2, "must be positive"),
        (["bench", "kernels", "--shape", "a,b"], 2, "N,K is required but got 'a,b'"),
        (["tune", "--shape", "8"], 2, "N,K is required but got '8'"),
    ],
)
def test_mistakes_are_one_line(arguments, status, message, tmp_path):
    result = commands.nibble(*arguments, cwd=tmp_path)
    assert result.returncode == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    if status == 1:
        assert result.stderr.startswith("nibble: [")
        assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_corrupt_file_is_one_line(tmp_path):
    (tmp_path / "cut.gguf").write_bytes(tiny_llama()[:20_000])
    result = nibble("convert", "cut.gguf", "out", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("nibble: [gguf] tensor ")
    assert result.stderr.endswith("it is truncated or corrupt.\n")
    assert os.listdir(tmp_path) == ["cut.gguf"]


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("[1]", "got a list."),
        ("{", "got: Expecting property name"),
        ('{"quantization": [4]}', "'quantization' in '"),
    ],
    ids=["list", "cut", "quantization"],
)
def test_a_corrupt_configuration_is_one_line(text, got, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").touch()
    for command in ("chat", "convert", "eval", "generate", "inspect", "tune"):
        option = ["--model"] if command in ("chat", "generate") else []
        assert main([command, *option, str(tmp_path)]) == 1
        message = capsys.readouterr().err
        assert message.startswith(f"nibble: [{command}] ")
        assert "a JSON object" in message and got in message
        assert message.count("\n") == 1


def test_what_lies_in_several_lines_is_told_in_one(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "short")
    (file,) = (tmp_path / "short").glob("model*.safetensors")
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    gone = ("model.layers.1.mlp.", "model.layers.1.input_layernorm.")
    kept = {n: a for n, a in tensors.items() if not n.startswith(gone)}
    mx.eval(kept)
    mx.save_safetensors(str(file), kept, {"format": "mlx"})
    result = nibble("generate", "--model", str(tmp_path / "short"))
    assert result.returncode == 1
    assert re.search(r"Missing \d+ parameters: .*model.layers.1.", result.stderr)
    assert result.stderr.count("\n") == 1


def test_a_missing_extra_is_named(tmp_path):
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(name='rich')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = nibble("convert", "a", "b", env=environment)
    assert result.returncode == 1
    assert "pip install 'mlx-nibble[lm]'" in result.stderr


def test_convert_takes_mlx_lms_flags(tiny, tmp_path):
    options = ["--hf-path", str(tiny), "--mlx-path", str(tmp_path / "out")]
    assert nibble("convert", *options, "--dtype", "float32").returncode == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["torch_dtype"] == "float32"


def test_generate_is_mlx_lms_command(folder):
    options = ["--model", str(folder), "--max-tokens", "5", "--seed", "1"]
    options += ["--temp", "0.7", "--prompt", "-"]
    result = nibble("generate", *options, input="the hen")
    assert result.returncode == 0, result.stderr
    assert "Prompt: " in result.stdout
    assert "Generation: 5 tokens" in result.stdout


def test_activations_of_8_bits_can_be_asked_for_everywhere(folder):
    options = ["--model", str(folder), "--max-tokens", "2", "--prompt", "the hen"]
    result = nibble("generate", "--activations", "int8", *options)
    assert result.returncode == 0, result.stderr
    assert "Generation: 2 tokens" in result.stdout
    defaults = dict.fromkeys(("generate", "chat", "serve"), "int16")
    defaults |= dict.fromkeys(("eval", "demo"), "exact")
    for command, default in defaults.items():
        text = " ".join(nibble(command, "--help").stdout.split())
        assert "--activations {exact,int16,int8}" in text
        assert f"says how much); default: {default}" in text


def test_batch_invariance_can_be_asked_for_where_mlx_lm_generates(folder):
    options = ["--model", str(folder), "--max-tokens", "3", "--prompt", "the hen"]
    options += ["--draft-model", str(folder), "--num-draft-tokens", "2"]
    result = nibble("generate", "--batch-invariant", *options)
    assert result.returncode == 0, result.stderr
    assert "Generation: 3 tokens" in result.stdout
    for command in ("generate", "chat", "serve"):
        assert "--batch-invariant" in nibble(command, "--help").stdout


def test_repacking_can_be_refused_and_changes_no_token(folder):
    options = ["--model", str(folder), "--max-tokens", "5", "--prompt", "the hen"]
    answers = [
        nibble("generate", *repack, *options).stdout.split("Prompt:")[0]
        for repack in ([], ["--no-repack"])
    ]
    assert answers[0] == answers[1] != ""
    for command in ("generate", "chat", "serve"):
        assert "--no-repack" in nibble(command, "--help").stdout


def test_a_hub_that_is_out_of_reach_is_one_line():
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = nibble("generate", "--model", "nibble/no-such-model", env=environment)
    assert result.returncode == 1
    assert result.stderr.startswith("nibble: [generate] the model is not a folder")
    assert result.stderr.count("\n") == 1


def test_chat_is_mlx_lms_command(folder):
    options = ["--model", str(folder), "--max-tokens", "4"]
    result = nibble("chat", *options, input="the hen\nq\n")
    assert result.returncode == 0, result.stderr
    assert "4 tokens" in result.stdout


def test_serve_answers_and_ends_when_told(folder):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--model", str(folder), "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlx_nibble.cli", "serve", *options],
        stderr=subprocess.DEVNULL,
    )
    try:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            json.dumps({"prompt": "the hen", "max_tokens": 3}).encode(),
            {"Content-Type": "application/json"},
        )
        while server.poll() is None:  # waits until it listens
            try:
                with urllib.request.urlopen(request) as response:
                    answer = json.load(response)
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        assert answer["usage"]["completion_tokens"] == 3
        server.terminate()
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_who_reads_help_may_close_the_pipe(command):
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_nibble.cli", command, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_a_server_ends_when_ctrl_c_is_pressed_twice(folder):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-m", "mlx_nibble.cli", "serve"]
        + ["--model", str(folder), "--port", port],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if "Starting httpd" in line:
                break
        server.send_signal(signal.SIGINT)
        time.sleep(0.05)
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
    assert (server.returncode, err) == (0, "")


def test_serve_on_an_address_that_is_taken_ends(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = nibble("serve", "--model", str(folder), "--port", port, timeout=60)
    assert result.returncode == 1
    error = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    assert result.stderr == f"nibble: [serve] {error}\n"


def test_demo_compares_any_model(tiny):
    result = nibble("demo", "--model", str(tiny), "--rounds", "2", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    jsonschema.validate(found, SCHEMA)
    capsule.check(found)
    assert found["complete"] and found["settings"]["model"] == "tiny"
    prompt, decode = (result["candidates"] for result in found["results"])
    for side in ("mlx", "nibble"):
        assert [len(taken) for taken in prompt[side]["passes"]] == [1, 1]
        # Sums of at most 96 terms, in two layers: no loss.
        assert prompt[side]["largest_logit_difference"] < 1e-4
        assert len(decode[side]["tokens"]) == found["settings"]["decode_tokens"]


def test_demo_prints_a_plain_table_in_a_pipe(tiny):
    options = ["--rounds", "1", "--max-tokens", "3", "-p", "the"]
    result = nibble("demo", "--model", str(tiny), *options)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("decode, 24 tokens: tokens/s") for line in lines)
    assert any(line.startswith("Median (lowest to highest)") for line in lines)


def test_a_closed_pipe_is_no_error(folder):
    command = f"{sys.executable} -m mlx_nibble.cli --help | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert result.stdout == "u"
    assert result.stderr == ""


def test_ctrl_c_ends_the_demo_at_once(tiny):
    """Press Ctrl-C on a terminal while MLX computes."""
    pid, terminal = pty.fork()
    if pid == 0:
        arguments = ["demo", "--model", str(tiny), "--rounds", "100000"]
        command = [sys.executable, "-m", "mlx_nibble.cli", *arguments]
        os.execv(sys.executable, command)
    shown = b""
    asked = None
    while True:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, shown
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if asked is None and b"Comparing speed" in shown:
            os.write(terminal, b"\x03")
            asked = time.monotonic()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGINT
    assert b"nibble: interrupted" in shown
    assert b"Traceback" not in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l"), "cursor is hidden"

"""Names of files as strangers choose them, in every command that takes one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_nibble.cli import convert, main
from mlx_nibble.cli.printable import printable
from tests.support.gguf_writer import tiny_llama

# Names that commands load from.
NAMES = [
    "tiny[q4]",
    "line\nbreak \x1b[2J\x1b]0;title\x07",
    "two  spaces é中\u202e",
    "~",
    "-dash",
    "a*?[!b]:smile:$HOME%s{0}",
]
# Names that errors hold.
MORE = ["[red]x", "[bold", "bell\a\b\r", "~nobody", "x" * 200, "c1\x9b31m", "\u2028"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("names")
    (base / "m.gguf").write_bytes(tiny_llama())
    assert main(["convert", str(base / "m.gguf"), str(base / "m")]) == 0
    return base


def shown(capfd) -> str:
    """Return what went to the terminal; no part of a name may control it."""
    captured = capfd.readouterr()
    for text in (captured.out, captured.err):
        assert not set(map(chr, [*range(9), *range(11, 32), *range(127, 160)])) & {
            *text.replace("\r\n", "\n")
        }
        assert "\u202e" not in text
    return captured.out + captured.err


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_any_name(name, whole, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("a hen, a pen and a den. " * 40)
    shutil.copy(whole / "m.gguf", tmp_path / f"{name}.gguf"[-250:])
    source = next(tmp_path.glob("*.gguf"))
    assert main(["convert", f"./{source.name}", f"--mlx-path={name}"]) == 0
    assert printable(name) in shown(capfd)
    path = name if name[0] != "-" else f"./{name}"
    some = ["--samples", "1", "--sequence-length", "8"]
    assert main(["eval", path, "--text", str(text), *some]) == 0
    assert printable(name) in shown(capfd)
    assert main(["inspect", path, "--tensors", "--layers"]) == 0
    assert main(["tune", path, "--dry-run"]) == 0
    assert main(["tune", "--show"]) == 0
    shown(capfd)
    options = ["--prompt", "a", "--max-tokens", "1"]
    assert main(["generate", f"--model={path}", *options]) == 0
    capfd.readouterr()  # text of the model
    quantize = ["convert", "-q", "--method", "rtn", "--q-group-size", "32"]
    assert main([*quantize, path, f"--mlx-path={name}2"]) == 0
    shown(capfd)


@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_errors_control_no_terminal(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    path = f"./{name}"
    for command in ("convert", "eval", "inspect", "tune"):
        assert main([command, f"{path}-absent"]) == 1
        assert "[" in shown(capfd)
    (tmp_path / name).mkdir()
    for command in ("convert", "eval", "inspect", "tune"):
        status = 1
        try:
            status = main([command, path])
        except SystemExit as end:
            status = end.code
        assert status in (1, 2)
        assert "Traceback" not in shown(capfd)


def test_remarks_of_convert_show_names_as_they_are(capfd):
    convert._tell("Importing models/[a]/m [b].gguf")
    assert capfd.readouterr().err == "Importing models/[a]/m [b].gguf\n"


def test_names_in_files_control_no_terminal(whole, tmp_path, capfd):
    folder = shutil.copytree(whole / "m", tmp_path / "m")
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["[red]\x1b[2Jnorm\n"] = header.pop("model.norm.weight")
    text = json.dumps(header).encode()
    changed = len(text).to_bytes(8, "little") + text + data[8 + length :]
    (folder / "model.safetensors").write_bytes(changed)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    assert main(["inspect", str(folder), "--tensors"]) == 0
    assert "[red]\\x1b[2Jnorm\\n" in shown(capfd)
    assert main(["generate", "--model", str(folder)]) == 1
    assert "norm" in shown(capfd)


def test_home_is_found_and_a_file_of_that_name_first(
    whole, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(whole / "m", tmp_path / "m")
    options = ["--prompt", "a", "--max-tokens", "1"]
    assert main(["generate", "--model=~/m", *options]) == 0
    assert main(["inspect", "~/m"]) == 0
    assert main(["tune", "~/m", "--dry-run"]) == 0
    quantize = ["convert", "-q", "--method", "rtn", "--q-group-size", "32"]
    assert main([*quantize, "--hf-path=~/m", "--mlx-path=~/out"]) == 0
    assert (tmp_path / "out" / "config.json").exists()
    capfd.readouterr()


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_bytes_that_are_no_text_are_shown_as_escapes(whole, tmp_path):
    shutil.copytree(whole / "m", os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    for command in ([b"inspect"], [b"tune", b"--dry-run"], [b"convert", b"-q"]):
        result = subprocess.run(
            [sys.executable.encode(), b"-m", b"mlx_nibble.cli", *command, b"\xff"],
            capture_output=True,
            cwd=tmp_path,
        )
        assert b"Traceback" not in result.stderr
        assert b"\xff" not in result.stdout + result.stderr
        assert result.returncode in (0, 1)


def test_a_link_to_a_model_is_that_model(whole, tmp_path, capfd):
    (tmp_path / "link").symlink_to(whole / "m")
    assert main(["inspect", str(tmp_path / "link")]) == 0
    (tmp_path / "out").symlink_to("absent")
    source, out = str(whole / "m.gguf"), str(tmp_path / "out")
    assert main(["convert", source, out]) == 1
    assert "must not exist" in shown(capfd)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain é中", "plain é中"),
        ("a\x1b[2J", "a\\x1b[2J"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\udcff", "\\xff"),
        ("\u202e\u200b", "\\u202e\\u200b"),
        ("\ud800", "\\ud800"),
        ("\u00a0\u3000", "\u00a0\u3000"),
    ],
)
def test_control_characters_become_escapes(text, safe):
    assert printable(text) == safe

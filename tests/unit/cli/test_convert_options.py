"""Each option of `nibble convert` on each of its paths: used, or an error."""

from __future__ import annotations

import shutil

import pytest

from mlx_nibble.cli import main
from mlx_nibble.cli.convert_options import USED_BY, flag
from tests.support import model_folders

PATHS = {
    "gguf": ["absent.gguf"],
    "packed": ["./absent"],
    "rtn": ["./absent", "-q", "--method", "rtn"],
    "gptq": ["./absent", "-q"],
    "target": ["./absent", "-q", "--target-bpw", "5"],
    "mode": ["./absent", "-q", "--q-mode", "mxfp4"],
    "rewrite": ["./absent", "-d"],
}
# A dot stands for an error. The text of a method that needs none is only checked: one
# command line compares methods.
TABLE = """
                     gguf packed rtn gptq target mode rewrite
--dtype float32      x    x      x   x    x      x    x
--upload-repo a/b    x    x      x   x    x      x    x
--keep values        x    x      .   .    .      .    .
--trust-remote-code  .    x      x   x    x      x    x
--q-mode affine      .    .      x   x    x      x    .
--q-bits 4           .    .      x   x    .      x    .
--q-group-size 32    .    .      x   x    x      x    .
--method awq         .    .      x   x    x      .    .
--recipe uniform     .    .      x   x    .      .    .
--target-bpw 6       .    .      x   x    x      .    .
--plot a.png         .    .      .   .    x      .    .
--symmetric          .    .      x   x    x      .    .
--distill          .    .      x   x    x      .    .
--calibration a.txt  .    .      t   x    x      .    .
--samples 3          .    .      t   x    x      .    .
--sequence-length 8  .    .      t   x    x      .    .
"""
ROWS = [line.rsplit(maxsplit=7) for line in TABLE.strip().splitlines()[1:]]


def run(*arguments: str) -> int:
    return main(["convert", *arguments[:1], "out", *arguments[1:]])


def test_the_table_has_all_options():
    assert {row[0].split()[0] for row in ROWS} == {flag(option) for option in USED_BY}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_an_option_is_used_or_refused(path, row, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "x")
    option, *cells = row
    expected = cells[list(PATHS).index(path)]
    assert run(*PATHS[path], *option.split()) == 1
    said = capsys.readouterr().err
    refused = f"options must be of use but {option.split()[0]} is not used in "
    assert (refused in said) == (expected == ".")
    assert ("has no effect" in said) == (expected == "t")
    if expected != ".":  # it got as far as the source
        assert "absent" in said
    if expected == "." and path in ("gguf", "packed"):
        assert "say -q" in said or "needs no -q" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["mixed_3_6", "attention8-mlp4"])
def test_a_recipe_that_has_its_own_widths(recipe, capsys):
    assert run("./absent", "-q", "--recipe", recipe, "--q-bits", "4") == 1
    assert f"--q-bits is not used in --recipe {recipe}" in capsys.readouterr().err
    assert run("./absent", "-q", "--recipe", recipe) == 1
    assert "does not exist" in capsys.readouterr().err


def test_symmetric_reaches_every_method(capsys):
    from argparse import Namespace

    from mlx_nibble.cli.convert_options import METHODS, method

    for name in METHODS:
        made = method(Namespace(method=name, symmetric=True))
        # MLX's affine rule has no scale-only form.
        assert made.rule in ("symmetric", "search")


@pytest.mark.parametrize("method", ["rtn", "search"])
def test_a_text_that_is_not_needed_must_be_right(method, tmp_path, capsys):
    folder, out = model_folders.imported(tmp_path / "m"), tmp_path / "out"
    command = ["convert", "-q", str(folder), str(out), "--method", method]
    (tmp_path / "a.txt").write_text("a hen")
    (tmp_path / "b.jsonl").write_text("[]")
    for text, status in (("a.txt", 0), ("b.jsonl", 1), ("absent.txt", 1)):
        asked = [
            *command,
            "--q-group-size",
            "32",
            "--calibration",
            str(tmp_path / text),
        ]
        assert main(asked) == status
        said = capsys.readouterr().err
        assert f"has no effect: {method} needs no text" in said
        assert out.exists() == (status == 0)
        if status:
            assert text in said
        else:
            shutil.rmtree(out)

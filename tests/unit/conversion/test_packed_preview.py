"""The preview of a packed folder names the forms that its conversion writes."""

from __future__ import annotations

import json

import pytest

from mlx_nibble.cli import main
from mlx_nibble.conversion.packed_import import import_packed
from mlx_nibble.conversion.packed_preview import preview
from mlx_nibble.evaluation.inventory import read_inventory
from tests.support import packed_folders
from tests.support.packed_folders import KINDS
from tests.unit.cli.test_packed_advice import KINDS as INTEGERS
from tests.unit.cli.test_packed_advice import packed


def require_same(folder, out) -> None:
    """Compare the preview of a folder with its import."""
    found, report = preview(folder), import_packed(folder, out)
    written = read_inventory(out)
    assert found.inventory.nbytes == written.nbytes == report.nbytes
    assert found.inventory.parameters == written.parameters
    assert bool(report.errors) == any(kind.error for kind in found.kinds)
    matrices = sum(kind.count for kind in found.kinds)
    assert matrices >= sum(report.bits.values()) > 0


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers(kind, rng, tmp_path):
    require_same(packed(tmp_path / "packed", kind, rng), tmp_path / "out")


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"nvfp4"}))
def test_floats_and_tables(kind, family, rng, tmp_path):
    packed_folders.write(tmp_path / "packed", kind, family, rng)
    require_same(tmp_path / "packed", tmp_path / "out")


def test_the_command_says_what_becomes_of_each_kind(rng, tmp_path, capsys):
    folder = tmp_path / "a b"
    packed_folders.write(folder, "fp8", "llama", rng)
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "Packed by FP8" in said and "nibble convert '" in said
    assert "model.layers.*.mlp.up_proj" in said and "8-bit g" in said
    assert "% off" in said and "bits each" in said
    assert main(["inspect", str(folder), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["packed"]["tool"] == "FP8" and made["nbytes"] > 0
    layers = len({row["path"] for row in made["tensors"] if "up_proj" in row["path"]})
    assert {kind["count"] for kind in made["packed"]["kinds"]} == {layers}
    assert main(["inspect", str(folder), "--what-if", "4:32", "--layers"]) == 0


def test_a_folder_that_is_not_imported_is_one_line(rng, tmp_path, capsys):
    settings = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}
    folder = packed(tmp_path / "packed", "gptq", rng, settings)
    assert main(["inspect", str(folder)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "marlin" in line

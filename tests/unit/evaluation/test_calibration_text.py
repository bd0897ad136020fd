"""The sources of texts for calibration and evaluation."""

from __future__ import annotations

import os
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import parquet

from mlx_nibble.evaluation.calibration_text import read_text


def test_the_built_in_text_is_english():
    text = read_text("builtin")
    assert len(text) > 400_000 and "statement" in text


def test_files_of_rows(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one"}\n{"text": "two", "id": 2}\n')
    assert read_text(str(rows)) == "one\ntwo"
    rows.write_text('{"content": "one"}\n')
    with pytest.raises(ValueError, match="a field 'text'"):
        read_text(str(rows))


def test_parquet(tmp_path):
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), file)
    assert read_text(str(file)) == "one\ntwo"
    parquet.write_table(pyarrow.table({"other": ["one"]}), file)
    with pytest.raises(ValueError, match="must have a column 'text'"):
        read_text(str(file))


def test_a_dataset_of_the_hub(tmp_path):
    """Read from the Hub's own cache, offline: the download is not our code."""
    dataset = tmp_path / "hub" / "datasets--owner--texts"
    revision = "0" * 40
    folder = dataset / "snapshots" / revision / "data"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("a text")
    (dataset / "refs").mkdir()
    (dataset / "refs" / "main").write_text(revision)
    module = "mlx_nibble.evaluation.calibration_text"
    code = f"from {module} import read_text as r; print(r({{!r}}))"
    result = subprocess.run(
        [sys.executable, "-c", code.format("hub:owner/texts/data/a.txt")],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "a text", result.stderr


@pytest.mark.parametrize("name", ["hub:owner", "hub:owner/texts", "nowhere.txt"])
def test_other_sources_are_refused(name):
    with pytest.raises(ValueError, match="OWNER/DATASET/PATH"):
        read_text(name)

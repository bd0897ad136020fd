"""An incomplete checkpoint is refused, with the name of the missing part."""

from __future__ import annotations

import json
import os

import mlx.core as mx
import pytest
from safetensors import SafetensorError, safe_open

from mlx_nibble.io.shards import weight_files

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(SHARDS):
        mx.save_safetensors(str(tmp_path / name), {f"w{i}": mx.ones(2)})
    write_index(tmp_path, {f"w{i}": name for i, name in enumerate(SHARDS)})
    return tmp_path


def write_index(folder, places) -> None:
    text = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text)


def refused(folder, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weight_files(folder, "test")


def test_a_whole_checkpoint(folder):
    assert [f.name for f in weight_files(folder, "test")] == SHARDS


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard(folder, index):
    (folder / SHARDS[1]).unlink()
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    refused(folder, f"'{SHARDS[1]}' is missing")


def test_all_shards_are_missing(folder):
    for name in SHARDS:
        (folder / name).unlink()
    refused(folder, f"'{SHARDS[0]}' is missing .* one of 3")
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "must hold config.json and model")


def test_a_shard_that_is_no_file(folder):
    (folder / SHARDS[2]).unlink()
    os.mkfifo(folder / SHARDS[2])
    refused(folder, f"'{SHARDS[2]}' is missing")


def test_a_tensor_that_only_the_index_has(folder):
    write_index(folder, {"w0": SHARDS[0], "w1": SHARDS[1], "gone": SHARDS[2]})
    refused(folder, f"'gone' is missing in '{SHARDS[2]}'")


def test_a_tensor_in_two_files(folder):
    mx.save_safetensors(str(folder / "model.safetensors"), {"w1": mx.ones(2)})
    refused(folder, "'w1' is in .*: remove the older one")


def test_a_file_that_mlx_lm_does_not_read(folder):
    mx.save_safetensors(str(folder / "other.safetensors"), {"x": mx.ones(2)})
    write_index(folder, {"x": "other.safetensors"})
    refused(folder, "'other.safetensors' is missing")


@pytest.mark.parametrize(
    "places", [{"w": "../w.safetensors"}, {"w": 3}, {"w": "/w"}, [], "w", None, 0]
)
def test_an_index_that_is_none(folder, places):
    write_index(folder, places)
    refused(folder, "an index must map names")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "[" * 100_000, "\xff"])
def test_an_index_that_is_no_json(folder, text):
    index = folder / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    refused(folder, f"'{index}'")


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_a_shard_that_was_cut(folder, keep):
    file = folder / SHARDS[1]
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, f"'{file}' but it has .* truncated")


def test_a_count_of_a_strangers_making(folder):
    name = "model-00001-of-99999999999999.safetensors"
    mx.save_safetensors(str(folder / name), {"y": mx.ones(2)})
    refused(folder, "is missing")


def header(entries: str, data: bytes) -> bytes:
    return len(entries).to_bytes(8, "little") + entries.encode() + data


A = '"a": {"dtype": "U8", "shape": [2], "data_offsets": [%d, %d]}'
B = '"b": {"dtype": "U8", "shape": [2], "data_offsets": [%d, %d]}'
EMPTY = '"c": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}'


@pytest.mark.parametrize(
    ("entries", "size", "message"),
    [
        ((A % (0, 2), B % (3, 5)), 5, "gaps or overlaps .* 'b' begins at byte 3"),
        ((A % (1, 3), B % (0, 2)), 4, "gaps or overlaps .* 'a' begins at byte 1"),
        ((A % (0, 2), B % (0, 2)), 2, "gaps or overlaps"),
        ((A % (0, 2), B % (2, 4)), 5, "4 bytes .* it has 5: remove the rest"),
        ((A % (0, 2), B % (2, 4)), 3, "truncated"),
        ((A % (0, 2), '"__metadata__": {"format": 1}'), 2, "__metadata__"),
        ((A % (0, 2), '"__metadata__": []'), 2, "__metadata__"),
    ],
)
def test_what_the_safetensors_package_refuses(entries, size, message, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(header("{" + ", ".join(entries) + "}", bytes(size)))
    refused(tmp_path, message)
    with pytest.raises(SafetensorError), safe_open(file, "numpy"):
        pass


def test_tensors_in_any_order_and_empty_ones(tmp_path):
    file = tmp_path / "model.safetensors"
    for entries in ((B % (2, 4), EMPTY, A % (0, 2)), (EMPTY, A % (0, 2), B % (2, 4))):
        file.write_bytes(header("{" + ", ".join(entries) + "}", bytes(4)))
        assert weight_files(tmp_path, "test") == [file]
        with safe_open(file, "numpy") as opened:
            assert sorted(opened.keys()) == ["a", "b", "c"]


def test_a_file_that_changes_is_read_again(folder):
    weight_files(folder, "test")
    file = folder / SHARDS[1]
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, "truncated")

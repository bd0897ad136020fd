"""The GGUF reader: right files are exact, wrong files raise one clear error."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf as oracle
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_nibble.formats import Quantized
from mlx_nibble.io.gguf.block_types import BLOCK_TYPES
from mlx_nibble.io.gguf.reader import read_gguf
from mlx_nibble.io.gguf.tensors import read_rows, read_values, values_of
from tests.support.gguf_blocks import random_blocks
from tests.support.gguf_writer import (
    TYPE_NUMBER,
    Tensor,
    gguf,
    plain,
    quantized,
    string,
    tiny_llama,
    tiny_metadata,
    tiny_tensors,
    value,
)

SMALL = {"general.architecture": "llama", "n": 7, "flag": True, "words": ["a", "bc"]}


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


def small_tensors() -> dict[str, Tensor]:
    rng = np.random.default_rng(1)
    return {
        "a.weight": quantized(rng, (3, 64), "Q4_1"),
        "b.weight": plain(rng.normal(size=(5,)), "F32"),
    }


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantized_tensors_agree_with_mlx_bit_for_bit(tmp_path, kind):
    tensor = quantized(np.random.default_rng(0), (7, 96), kind)
    path = write(tmp_path, gguf(SMALL, {"x.weight": tensor}))
    (ours,) = read_rows(read_gguf(path), "x.weight")
    theirs = mx.load(str(path))
    assert isinstance(ours, Quantized)
    assert ours.bits == (8 if kind == "Q8_0" else 4)
    np.testing.assert_array_equal(ours.words(), np.array(theirs["x.weight"]))
    for name in ("scales", "biases"):
        np.testing.assert_array_equal(
            getattr(ours, name), np.array(theirs[f"x.{name}"])
        )


QUANTIZED = [
    row.name for row in BLOCK_TYPES.values() if row.decode and row.elements > 1
]


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("most", [1, 1500, 1 << 20])
def test_quantized_tensors_have_the_values_of_the_package_gguf(tmp_path, kind, most):
    number = oracle.GGMLQuantizationType[kind]
    data = random_blocks(np.random.default_rng(0), (3, 4, 512), number)
    tensor = Tensor((3, 4, 512), number, data.tobytes())
    file = read_gguf(write(tmp_path, gguf(SMALL, {"x": tensor})))
    parts = [values_of(part) for part in read_rows(file, "x", most)]
    assert len(parts) == -(-12 // max(1, most // 512))
    expected = oracle.quants.dequantize(data, number)
    got = np.concatenate(parts).reshape(3, 4, 512)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(read_values(file, "x"), expected)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_all_blocks_are_values_or_an_error(tmp_path, kind):
    """Random bytes have NaN and infinity as scales, too."""
    number = oracle.GGMLQuantizationType[kind]
    elements, nbytes = oracle.GGML_QUANT_SIZES[number]
    rng = np.random.default_rng(0)
    for _ in range(20):
        data = rng.integers(0, 256, (2, nbytes)).astype(np.uint8)
        tensor = Tensor((2, elements), number, data.tobytes())
        file = read_gguf(write(tmp_path, gguf(SMALL, {"x": tensor})))
        with np.errstate(all="ignore"):
            expected = oracle.quants.dequantize(data, number)
        try:
            got = read_values(file, "x")
        except ValueError as error:
            assert "finite scales" in str(error)
        else:
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_tensors_keep_their_values(tmp_path, kind):
    values = np.arange(-12, 12).reshape(2, 3, 4) / 4  # exact in every type
    path = write(tmp_path, gguf(SMALL, {"x": plain(values, kind)}))
    np.testing.assert_array_equal(read_values(read_gguf(path), "x"), values)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 64])
def test_versions_and_alignments(tmp_path, version, alignment):
    metadata = {**SMALL, "general.alignment": alignment}
    content = gguf(metadata, small_tensors(), version, alignment)
    file = read_gguf(write(tmp_path, content))
    assert file.metadata == metadata
    assert file.tensors["a.weight"].shape == (3, 64)
    assert file.read("a.weight").tobytes() == small_tensors()["a.weight"].data


def test_every_truncation_is_refused(tmp_path):
    content = gguf(SMALL, small_tensors())
    path = tmp_path / "cut.gguf"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"^\[gguf\] "):
            read_gguf(path)


@given(
    edits=st.lists(
        st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8
    ),
    spread=st.sampled_from([1, 8, 60]),
)
@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_corrupt_bytes_never_do_worse_than_a_value_error(tmp_path, edits, spread):
    content = bytearray(gguf(SMALL, small_tensors()))
    for position, byte in edits:
        content[position % (len(content) // spread)] = byte
    try:
        file = read_gguf(write(tmp_path, bytes(content)))
        for name in file.tensors:
            read_values(file, name)
    except ValueError as error:
        assert str(error).startswith("[gguf] ")


HUGE = 2**64 - 1


def header(tensors: int = 0, metadata: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, metadata)


def tensor_entry(
    name: str = "x", sizes: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0
) -> bytes:
    shape = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


def with_tensors(*entries: bytes, data: int = 4096) -> bytes:
    content = header(tensors=len(entries)) + b"".join(entries)
    return content + bytes(-len(content) % 32 + data)


ONE_KEY = header(metadata=1)

HOSTILE = {
    "empty": b"",
    "not a GGUF": b"PK\3\4" + bytes(64),
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "2^64 tensors": header(tensors=HUGE) + bytes(64),
    "2^64 keys": header(metadata=HUGE) + bytes(64),
    "long key": ONE_KEY + struct.pack("<Q", HUGE) + bytes(64),
    "empty key": ONE_KEY + string("") + value(1) + bytes(8),
    "key is no UTF-8": ONE_KEY + string(b"\xff\xfe") + value(1),
    "unknown type": ONE_KEY + string("k") + struct.pack("<IQ", 99, 0),
    "nested array": ONE_KEY + string("k") + struct.pack("<IIQ", 9, 9, 0),
    "2^64 strings": ONE_KEY + string("k") + struct.pack("<IIQ", 9, 8, HUGE),
    "2^61 doubles": ONE_KEY + string("k") + struct.pack("<IIQ", 9, 12, 2**61),
    "boolean of 2": ONE_KEY + string("k") + struct.pack("<IB", 7, 2),
    "array boolean of 2": ONE_KEY + string("k") + struct.pack("<IIQB", 9, 7, 1, 2),
    "same key twice": header(metadata=2) + (string("k") + value(1)) * 2,
    "alignment 0": ONE_KEY + string("general.alignment") + value(0),
    "alignment 48": ONE_KEY + string("general.alignment") + value(48),
    "alignment of text": ONE_KEY + string("general.alignment") + value("32"),
    "rank 0": with_tensors(tensor_entry(sizes=())),
    "rank 5": with_tensors(tensor_entry(sizes=(1,) * 5)),
    "size 0": with_tensors(tensor_entry(sizes=(32, 0))),
    "sizes overflow": with_tensors(tensor_entry(sizes=(2**32, 2**32, 2**32))),
    "sizes wrap to 0": with_tensors(tensor_entry(sizes=(2**62, 4))),
    "unknown tensor type": with_tensors(tensor_entry(kind=77)),
    "part of a block": with_tensors(tensor_entry(sizes=(33,), kind=2)),
    "offset beyond the end": with_tensors(tensor_entry(offset=2**20)),
    "offset wraps": with_tensors(tensor_entry(offset=HUGE - 31)),
    "offset not aligned": with_tensors(tensor_entry(offset=4)),
    "long name": with_tensors(tensor_entry(name="x" * 65)),
    "same name twice": with_tensors(tensor_entry(), tensor_entry(offset=128)),
    "shared bytes": with_tensors(tensor_entry("a"), tensor_entry("b")),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"^\[gguf\] "):
        read_gguf(write(tmp_path, content))


def test_a_folder_or_a_device_is_refused(tmp_path):
    with pytest.raises(OSError):
        read_gguf(tmp_path)
    with pytest.raises(ValueError, match="regular file"):
        read_gguf("/dev/zero")


def test_unsupported_types_are_named(tmp_path):
    iq3_s = Tensor((2, 256), 21, bytes(2 * 110))
    file = read_gguf(write(tmp_path, gguf(SMALL, {"odd.weight": iq3_s})))
    with pytest.raises(ValueError, match=r"'odd.weight' is of type IQ3_S"):
        read_values(file, "odd.weight")


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_scales_that_are_no_numbers_are_refused(tmp_path, kind, scale):
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    data = struct.pack("<e", scale) + bytes(size - 2)
    tensor = Tensor((1, 32), TYPE_NUMBER[kind], data)
    file = read_gguf(write(tmp_path, gguf(SMALL, {"x": tensor})))
    with pytest.raises(ValueError, match="finite"):
        read_values(file, "x")


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path):
    path = write(tmp_path, tiny_llama())
    file = read_gguf(path)
    path.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="now ends"):
        file.read("token_embd.weight")


def test_metadata_of_another_kind_is_refused(tmp_path):
    file = read_gguf(write(tmp_path, gguf(SMALL, {})))
    with pytest.raises(ValueError, match="must be of type int"):
        file.get("flag", int)
    with pytest.raises(ValueError, match="must hold 'absent'"):
        file.get("absent", int)
    assert file.get("absent", int, 3) == 3


def test_the_tiny_model_is_what_mlx_reads_too(tmp_path):
    path = write(tmp_path, tiny_llama("Q4_0"))
    arrays, metadata = mx.load(str(path), return_metadata=True)
    assert metadata["tokenizer.ggml.tokens"] == tiny_metadata()["tokenizer.ggml.tokens"]
    assert len(arrays) == sum(
        3 if tensor.kind in (2, 3, 8) else 1 for tensor in tiny_tensors("Q4_0").values()
    )

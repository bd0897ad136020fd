"""A llama in plain NumPy, read from a GGUF file: the end-to-end oracle.

It shares no code with the tested package. MLX's own GGUF reader reads the weights, in
llama.cpp's row order, for which rotary embedding rotates neighbouring pairs.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np


class Llama:
    """The dequantized model, computed in one floating-point type."""

    def __init__(self, path: Path, dtype: type[np.floating]):
        loaded = mx.load(str(path), return_metadata=True)
        self.arrays, metadata = loaded
        self.dtype = dtype

        def number(key: str) -> float:
            return metadata[f"llama.{key}"].item()

        self.layers = int(number("block_count"))
        self.heads = int(number("attention.head_count"))
        self.kv_heads = int(number("attention.head_count_kv"))
        # The decimal that the file's fp32 number was rounded from.
        self.eps = float(str(np.float32(number("attention.layer_norm_rms_epsilon"))))
        self.theta = number("rope.freq_base")

    def weight(self, name: str) -> np.ndarray:
        """Return s q + b, [N, K], or a norm's plain values."""
        stored = np.array(self.arrays[f"{name}.weight"])
        if f"{name}.scales" not in self.arrays:
            return stored.astype(self.dtype)
        scales = np.array(self.arrays[f"{name}.scales"]).astype(self.dtype)[..., None]
        biases = np.array(self.arrays[f"{name}.biases"]).astype(self.dtype)[..., None]
        codes = stored.view(np.uint8)
        if stored.shape[-1] * 8 == scales.shape[1] * 32:  # 8 codes of 4 bits in a word
            codes = np.stack([codes & 0xF, codes >> 4], axis=-1)
        codes = codes.reshape(*scales.shape[:2], 32)
        return (scales * codes + biases).reshape(stored.shape[0], -1)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Return the logits [L, vocabulary] of a text of L tokens."""
        embedding = self.weight("token_embd")
        x = embedding[tokens]
        rotation = self._rotation(len(tokens), x.shape[1] // self.heads)
        for layer in range(self.layers):
            name = f"blk.{layer}"
            x = x + self._attention(name, self._norm(f"{name}.attn_norm", x), rotation)
            h = self._norm(f"{name}.ffn_norm", x)
            gate = h @ self.weight(f"{name}.ffn_gate").T
            up = h @ self.weight(f"{name}.ffn_up").T
            x = (
                x
                + (gate / (1 + np.exp(-gate)) * up) @ self.weight(f"{name}.ffn_down").T
            )
        return self._norm("output_norm", x) @ embedding.T

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.dtype(self.eps)) * self.weight(name)

    def _rotation(self, length: int, size: int) -> np.ndarray:
        """Return exp(i position theta^(-2j/size)), complex [L, 1, size/2]."""
        frequencies = self.theta ** (-np.arange(0, size, 2) / size)
        angles = np.arange(length)[:, None] * frequencies
        kind = np.complex128 if self.dtype is np.float64 else np.complex64
        return np.exp(1j * angles)[:, None].astype(kind)

    def _rotate(self, rows: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        pairs = np.ascontiguousarray(rows).view(rotation.dtype)
        return (pairs * rotation).view(self.dtype)

    def _attention(self, name: str, x: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        length = x.shape[0]

        def heads(part: str, count: int) -> np.ndarray:
            return (x @ self.weight(f"{name}.{part}").T).reshape(length, count, -1)

        q = self._rotate(heads("attn_q", self.heads), rotation)
        k = self._rotate(heads("attn_k", self.kv_heads), rotation)
        v = heads("attn_v", self.kv_heads)
        shared = self.heads // self.kv_heads
        k, v = (np.repeat(rows, shared, axis=1) for rows in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k, optimize=True)
        scores /= self.dtype(np.sqrt(q.shape[-1]))
        scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", scores, v, optimize=True)
        return mixed.reshape(length, -1) @ self.weight(f"{name}.attn_output").T

"""A dequantized llama in float64: the reference of all errors.

MLX cannot compute it: even on float64 arrays its CPU operations compute RMS norms and
exponentials in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.io.checkpoint import read_tensors
from mlx_nibble.io.config import read_config, stored_settings


def llama_logits(folder: Path, tokens: Sequence[int]) -> np.ndarray | None:
    """Compute logits in float64 from a model's float32-dequantized weights.

    Args:
        folder: An MLX checkpoint.
        tokens: Token ids.

    Returns:
        float64 ``[len(tokens), vocabulary]``, or None if the model is not a plain
        llama (no biases, no rope scaling).
    """
    config = read_config(folder, "reference")
    unusual = ("attention_bias", "mlp_bias", "rope_scaling", "sliding_window")
    if config["model_type"] != "llama" or any(config.get(key) for key in unusual):
        return None
    arrays = read_tensors(folder.glob("model*.safetensors"))
    return _Llama(arrays, config).logits(list(tokens))


class _Llama:
    def __init__(self, arrays: dict[str, mx.array], config: dict[str, Any]):
        self._config = config
        self._arrays = arrays

    def logits(self, tokens: list[int]) -> np.ndarray:
        embedding = self._weight("model.embed_tokens")
        x = embedding[tokens]
        rotation = self._rotation(len(tokens))
        for layer in range(self._config["num_hidden_layers"]):
            path = f"model.layers.{layer}"
            normed = self._norm(f"{path}.input_layernorm", x)
            x = x + self._attention(f"{path}.self_attn", normed, rotation)
            normed = self._norm(f"{path}.post_attention_layernorm", x)
            x = x + self._mlp(f"{path}.mlp", normed)
        tied = self._config.get("tie_word_embeddings", True)
        head = embedding if tied else self._weight("lm_head")
        return self._norm("model.norm", x) @ head.T

    def _weight(self, path: str) -> np.ndarray:
        weight = self._arrays[f"{path}.weight"]
        if f"{path}.scales" in self._arrays:
            scales = self._arrays[f"{path}.scales"]
            biases = self._arrays.get(f"{path}.biases")
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            weight = mx.dequantize(
                weight,
                scales,
                biases,
                **stored_settings(self._config, path),
            )
        return np.array(weight.astype(mx.float32)).astype(np.float64)

    def _norm(self, path: str, x: np.ndarray) -> np.ndarray:
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        root = np.sqrt(mean_square + self._config["rms_norm_eps"])
        return x / root * self._weight(path)

    def _mlp(self, path: str, x: np.ndarray) -> np.ndarray:
        gate = x @ self._weight(f"{path}.gate_proj").T
        up = x @ self._weight(f"{path}.up_proj").T
        return (gate / (1 + np.exp(-gate)) * up) @ self._weight(f"{path}.down_proj").T

    def _attention(self, path: str, x: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        q_heads = self._config["num_attention_heads"]
        kv_heads = self._config.get("num_key_value_heads") or q_heads

        def heads(part: str, count: int) -> np.ndarray:
            rows = x @ self._weight(f"{path}.{part}").T
            return rows.reshape(len(x), count, -1).swapaxes(0, 1)  # [heads, L, size]

        q = _rotate(heads("q_proj", q_heads), rotation)
        k = _rotate(heads("k_proj", kv_heads), rotation)
        v = heads("v_proj", kv_heads)
        k, v = (np.repeat(rows, q_heads // kv_heads, axis=0) for rows in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ v
        rows = mixed.swapaxes(0, 1).reshape(len(x), -1)
        return rows @ self._weight(f"{path}.o_proj").T

    def _rotation(self, length: int) -> np.ndarray:
        """Return exp(i p theta^(-2j/size)) of each position p, ``[length, size/2]``."""
        heads = self._config["num_attention_heads"]
        size = self._config.get("head_dim") or self._config["hidden_size"] // heads
        theta = float(self._config.get("rope_theta", 10000))
        frequencies = theta ** (-np.arange(0, size, 2) / size)
        return np.exp(1j * np.arange(length)[:, None] * frequencies)


def _rotate(rows: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Rotate the pairs (x_j, x_{j + size/2}) of rows ``[heads, L, size]``."""
    half = rows.shape[-1] // 2
    turned = (rows[..., :half] + 1j * rows[..., half:]) * rotation
    return np.concatenate([turned.real, turned.imag], axis=-1)

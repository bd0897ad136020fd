"""The metadata of a GGUF file, read and checked as config.json of mlx-lm's model."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_nibble.conversion.gguf_architectures import Architecture
from mlx_nibble.conversion.gguf_metadata import require_known, rope_scaling
from mlx_nibble.conversion.gguf_special_tokens import end_ids, token_id
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF


def model_config(file: GGUF, architecture: Architecture) -> dict[str, Any]:
    """Return the ``config.json`` of the model, without its quantization.

    Metadata that change the model are used here, or refused.

    Raises:
        ValueError: If the metadata lack a value, have a wrong one, or need what
            mlx-lm's model does not compute.
    """
    metadata = _Metadata(file, architecture.name)
    hidden = metadata.size("embedding_length")
    heads = metadata.size("attention.head_count")
    kv_heads = metadata.size("attention.head_count_kv", heads)
    if heads % kv_heads:
        fail(
            f"{heads} attention heads must divide evenly among {kv_heads} key-value "
            "heads but do not."
        )
    if hidden % heads and not metadata.has("attention.key_length"):
        fail(f"embedding_length must be a multiple of {heads} heads but is {hidden}.")
    head_dim = metadata.size("attention.key_length", hidden // heads)
    _require_whole_rotation(metadata, head_dim)
    scaling = rope_scaling(file, architecture.name)
    require_known(file, architecture.name, head_dim)
    eps = metadata.get("attention.layer_norm_rms_epsilon", float)
    theta = metadata.get("rope.freq_base", float, 10000.0)
    if not (0 < eps < 1 and 0 < theta < float("inf")):
        fail(f"norm epsilon and rope base must be positive but got {eps} and {theta}.")
    tokens = file.get("tokenizer.ggml.tokens", list)
    return {
        "model_type": architecture.model_type,
        "architectures": [architecture.model_class],
        "hidden_size": hidden,
        "intermediate_size": metadata.size("feed_forward_length"),
        "num_hidden_layers": metadata.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        # Shortest decimals of two fp32 numbers, which have few digits.
        "rms_norm_eps": float(str(np.float32(eps))),
        "rope_theta": float(str(np.float32(theta))),
        "max_position_embeddings": metadata.size("context_length"),
        "vocab_size": len(tokens),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": token_id(file, "bos"),
        "eos_token_id": _stops(file),
        **({} if scaling is None else {"rope_scaling": scaling}),
    }


def generation_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the ``generation_config.json`` of a configuration."""
    ids = ("bos_token_id", "eos_token_id")
    return {key: config[key] for key in ids if config[key] is not None}


def _stops(file: GGUF) -> int | list[int] | None:
    """Return the id at which generation ends, or the list of them, the first first."""
    ids = end_ids(file)
    return ids if len(ids) > 1 else (ids[0] if ids else None)


class _Metadata:
    """The metadata of one architecture, whose name begins each key."""

    def __init__(self, file: GGUF, architecture: str):
        self._file, self._prefix = file, architecture

    def has(self, key: str) -> bool:
        return f"{self._prefix}.{key}" in self._file.metadata

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        return self._file.get(f"{self._prefix}.{key}", kind, default)

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key, int, default)
        if not 0 < value < 2**31:
            fail(f"{self._prefix}.{key} must be from 1 to 2³¹ − 1 but is {value}.")
        return value


def _require_whole_rotation(metadata: _Metadata, head_dim: int) -> None:
    rotated = metadata.size("rope.dimension_count", head_dim)
    if rotated != head_dim or head_dim % 2:
        fail(
            f"rotary embedding must cover heads of an even size but covers {rotated} "
            f"of {head_dim}."
        )

"""The metadata of a GGUF file, read and checked as config.json of mlx-lm's model."""

from __future__ import annotations

from typing import Any

from mlx_nibble.conversion.gguf_architectures import Architecture, Model, sizes
from mlx_nibble.conversion.gguf_metadata import Metadata
from mlx_nibble.conversion.gguf_rope import rope_scaling
from mlx_nibble.conversion.gguf_special_tokens import end_ids, token_id
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF


def read_model(file: GGUF, row: Architecture) -> Model:
    """Return the model of a file: its ``config.json``, and what the table needs.

    Metadata that change the model are used here, or refused.

    Raises:
        ValueError: If the metadata lack a value, have a wrong one, or need what
            mlx-lm's model does not compute.
    """
    metadata = Metadata(file, row.name)
    config = _common(metadata, row)
    if row.settings is not None:
        config |= row.settings(metadata, config)
    metadata.require_known(config["head_dim"], row.window)
    return Model(row, config, sizes(config), _facts(file, config))


def generation_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the ``generation_config.json`` of a configuration."""
    ids = ("bos_token_id", "eos_token_id")
    return {key: config[key] for key in ids if config[key] is not None}


def _common(metadata: Metadata, row: Architecture) -> dict[str, Any]:
    """Return the keys that all models have."""
    file = metadata.file
    hidden = metadata.size("embedding_length")
    heads = metadata.size("attention.head_count")
    kv_heads = metadata.size("attention.head_count_kv", heads)
    if heads % kv_heads:
        fail(
            f"{heads} attention heads must divide evenly among {kv_heads} key-value "
            "heads but do not."
        )
    head_dim = _head_dim(metadata, row, hidden, heads)
    rotated = metadata.size("rope.dimension_count", head_dim)
    if (rotated != head_dim and not row.part_rotated) or rotated % 2:
        fail(
            f"rotary embedding must cover heads of an even size but covers {rotated} "
            f"of {head_dim}."
        )
    layers = metadata.size("block_count")
    # Checked before anything gets a size that a stranger wrote.
    if layers > len(file.tensors):
        fail(f"{layers} layers need more tensors than the {len(file.tensors)} there.")
    base = metadata.number("rope.freq_base", 10000.0)
    eps = metadata.number("attention.layer_norm_rms_epsilon")
    if eps >= 1:
        fail(f"the epsilon of norms must be below 1 but is {eps}.")
    scaling = rope_scaling(metadata, row.scalings, base, rotated)
    expert = metadata.get("expert_feed_forward_length", int, 0) if row.experts else 0
    return {
        "model_type": row.model_type,
        "architectures": [row.model_class],
        "hidden_size": hidden,
        "intermediate_size": metadata.size("feed_forward_length", expert or None),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": eps,
        "rope_theta": base,
        "max_position_embeddings": metadata.size("context_length"),
        "vocab_size": len(file.get("tokenizer.ggml.tokens", list)),
        "tie_word_embeddings": row.tied and "output.weight" not in file.tensors,
        "bos_token_id": token_id(file, "bos"),
        "eos_token_id": _stops(file),
        **({} if scaling is None else {"rope_scaling": scaling}),
    }


def _head_dim(metadata: Metadata, row: Architecture, hidden: int, heads: int) -> int:
    if hidden % heads and not metadata.has("attention.key_length"):
        fail(f"embedding_length must be a multiple of {heads} heads but is {hidden}.")
    head_dim = metadata.size("attention.key_length", max(1, hidden // heads))
    if not row.head_size and head_dim * heads != hidden:
        fail(
            f"{heads} heads of {hidden // heads} are required in mlx-lm's "
            f"{row.model_type} but have {head_dim}."
        )
    return head_dim


def _facts(file: GGUF, config: dict[str, Any]) -> frozenset[str]:
    """Return the facts that places need."""
    newer = config["model_type"] == "deepseek_v3"
    joined = "blk.0.attn_kv_b.weight" in file.tensors
    facts = {
        "always": True,
        "head": "output.weight" in file.tensors,
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "one q": not config.get("q_lora_rank"),
        "latent q": config.get("q_lora_rank"),
        "one kv": joined,
        "one kv, to divide": joined and newer,
        "split kv": not joined,
        "split kv, to join": not joined and not newer,
        "correction": newer,
        "shared experts": config.get("n_shared_experts"),
    }
    return frozenset(fact for fact, holds in facts.items() if holds)


def _stops(file: GGUF) -> int | list[int] | None:
    """Return the id at which generation ends, or the list of them, the first first."""
    ids = end_ids(file)
    return ids if len(ids) > 1 else (ids[0] if ids else None)

"""Small random models of mlx-lm's families, for tests that walk a model."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 160,
}
_EXTRA: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {
        "head_dim": 16,
        "max_position_embeddings": 64,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
    },
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
    },
    "phi": {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    "phi3": {"rope_theta": 1e4, "tie_word_embeddings": False},
    # mlx-lm loads Mistral as a llama.
    "ministral3": {
        "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16,
        },
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 8,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "rope_theta": 1e4,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
}
FAMILIES = tuple(_EXTRA)

# Multi-head latent attention, and experts beside shared experts.
_EXTRA["deepseek_v3"] = {
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "rope_theta": 1e4,
}
_EXTRA["qwen2_moe"] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
# Experts, sinks, and windows in every other layer.
_EXTRA["gpt_oss"] = {
    "head_dim": 16,
    "num_hidden_layers": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "rope_theta": 1e4,
    "rope_scaling": None,
}


def config(family: str, **changes: Any) -> dict[str, Any]:
    """Return the model's config.json."""
    return {"model_type": family, **_SIZES, **_EXTRA[family], **changes}


def build(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """Return a model with random weights, whose outputs differ between tokens."""
    mx.random.seed(seed)
    module = importlib.import_module(f"mlx_lm.models.{family}")
    model = module.Model(module.ModelArgs.from_dict(config(family, **changes)))

    def spread(a: mx.array) -> mx.array:
        return 3 * a if a.ndim > 1 else a + 0.1 * mx.random.normal(a.shape)

    model.update(tree_map(spread, model.parameters()))
    mx.eval(model.parameters())
    return model


def tokens(count: int = 4, length: int = 48, seed: int = 1) -> list[mx.array]:
    """Return batches [1, length] of token ids."""
    mx.random.seed(seed)
    return [mx.random.randint(0, 160, (1, length)) for _ in range(count)]

"""The keys of config.json that only some architectures have.

Each function takes the metadata and the keys that all models have. It returns further
keys, or other values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlx_nibble.conversion.gguf_metadata import Metadata
from mlx_nibble.io.gguf.errors import fail

Config = dict[str, Any]
# Models of these layers scale attention by hidden size over heads (llama-model.cpp).
_GEMMA2_27B, _GEMMA3_27B = 46, 62
# llama.cpp's defaults of Gemma 3, which files of before September 2025 do not state.
_GEMMA3_PATTERN, _GEMMA3_LOCAL_BASE = 6, 10000.0
_GELU = dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh")
_SOFTMAX, _SIGMOID = 1, 2  # expert_gating_func


def llama(metadata: Metadata, config: Config) -> Config:
    """Return the settings of llama: whether projections have biases."""
    tensors = metadata.file.tensors
    return {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
    }


def smollm3(metadata: Metadata, config: Config) -> Config:
    """Return the settings of SmolLM3: each fourth layer does not rotate."""
    return llama(metadata, config) | {"no_rope_layer_interval": 4}


def granite(metadata: Metadata, config: Config) -> Config:
    """Return the settings of Granite: four factors; 0 is llama.cpp's 1."""
    if not metadata.get("rope.scaling.finetuned", bool, True):
        fail(
            "granite.rope.scaling.finetuned must not be false: mlx-lm's model rotates."
        )
    scale = _factor(metadata, "attention.scale") or config["head_dim"] ** -0.5
    return llama(metadata, config) | {
        "attention_multiplier": scale,
        "embedding_multiplier": _factor(metadata, "embedding_scale") or 1.0,
        "residual_multiplier": _factor(metadata, "residual_scale") or 1.0,
        "logits_scaling": _factor(metadata, "logit_scale") or 1.0,
    }


def qwen2moe(metadata: Metadata, config: Config) -> Config:
    """Return the settings of Qwen 2 MoE."""
    shared = metadata.size("expert_shared_feed_forward_length")
    return _experts(metadata) | {"shared_expert_intermediate_size": shared}


def qwen3moe(metadata: Metadata, config: Config) -> Config:
    """Return the settings of Qwen 3 MoE; llama.cpp always norms the weights."""
    return _experts(metadata) | {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


def gemma2(metadata: Metadata, config: Config) -> Config:
    """Return the settings of Gemma 2."""
    return {
        **_GELU,
        "query_pre_attn_scalar": _query_scalar(config, _GEMMA2_27B),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
    }


def gemma3(metadata: Metadata, config: Config) -> Config:
    """Return the settings of Gemma 3."""
    key = "attention.sliding_window_pattern"
    pattern = _GEMMA3_PATTERN
    if isinstance(metadata.file.metadata.get(f"gemma3.{key}"), np.ndarray):
        pattern = _period(metadata, key, config["num_hidden_layers"])
    elif metadata.has(key):
        pattern = metadata.size(key)
    base = metadata.number("rope.freq_base_swa", _GEMMA3_LOCAL_BASE)
    return {
        **_GELU,
        "query_pre_attn_scalar": _query_scalar(config, _GEMMA3_27B),
        "sliding_window": metadata.size("attention.sliding_window"),
        "sliding_window_pattern": pattern,
        "rope_local_base_freq": base,
    }


def phi3(metadata: Metadata, config: Config) -> Config:
    """Return the settings of Phi 3; mlx-lm rotates a part of each head if asked."""
    scaling = config.get("rope_scaling") or {}
    context = config["max_position_embeddings"]
    key = "original_max_position_embeddings"
    rotated = metadata.size("rope.dimension_count", config["head_dim"])
    return {
        "partial_rotary_factor": rotated / config["head_dim"],
        key: scaling.get(key, context),
    }


def gpt_oss(metadata: Metadata, config: Config) -> Config:
    """Return the settings of gpt-oss: layers with and without window take turns."""
    layers = config["num_hidden_layers"]
    found = _experts(metadata)
    return {
        "num_local_experts": found["num_experts"],
        "num_experts_per_tok": found["num_experts_per_tok"],
        "intermediate_size": found["moe_intermediate_size"],
        "sliding_window": metadata.size("attention.sliding_window"),
        "layer_types": [
            "full_attention" if i % 2 else "sliding_attention" for i in range(layers)
        ],
    }


def deepseek2(metadata: Metadata, config: Config) -> Config:
    """Return the settings of DeepSeek 2 and 3, which have one name in llama.cpp."""
    split = "blk.0.attn_k_b.weight" in metadata.file.tensors
    suffix = "_mla" if split else ""
    rotated = metadata.size("rope.dimension_count")
    key = metadata.size(f"attention.key_length{suffix}")
    value = metadata.size(f"attention.value_length{suffix}")
    if split:  # the sizes of the latent head, which follow from others
        metadata.size("attention.key_length")
        metadata.size("attention.value_length")
    if key <= rotated:
        fail(f"heads must be larger than their rotated part {rotated} but have {key}.")
    gating = metadata.get("expert_gating_func", int, _SOFTMAX)
    if gating not in (_SOFTMAX, _SIGMOID):
        fail(f"deepseek2.expert_gating_func must be 1 or 2 but is {gating}.")
    newer = gating == _SIGMOID
    found = _experts(metadata)
    groups = metadata.get("expert_group_count", int, 1) or 1
    kept = metadata.get("expert_group_used_count", int, groups) or groups
    if not 1 <= kept <= groups <= found["num_experts"]:
        fail(
            f"experts must be in groups, some of them used, but {kept} of {groups} are."
        )
    norm = metadata.get("expert_weights_norm", bool, False)
    if norm and not newer:
        fail("deepseek2.expert_weights_norm must be false for softmax but is true.")
    greedy = "group_limited_greedy" if groups > 1 else "greedy"
    return {
        "model_type": "deepseek_v3" if newer else "deepseek_v2",
        "architectures": [f"DeepseekV{3 if newer else 2}ForCausalLM"],
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": _optional_size(metadata, "attention.q_lora_rank"),
        "kv_lora_rank": metadata.size("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": value,
        "n_routed_experts": found["num_experts"],
        "num_experts_per_tok": found["num_experts_per_tok"],
        "moe_intermediate_size": found["moe_intermediate_size"],
        "n_shared_experts": _optional_size(metadata, "expert_shared_count"),
        "first_k_dense_replace": metadata.get("leading_dense_block_count", int, 0),
        "routed_scaling_factor": metadata.number("expert_weights_scale", 1.0),
        "norm_topk_prob": norm,
        "topk_method": "noaux_tc" if newer else greedy,
        "scoring_func": "sigmoid" if newer else "softmax",
        "n_group": groups,
        "topk_group": kept,
        "moe_layer_freq": 1,
        "rope_scaling": _latent_scaling(metadata, config),
    }


def _latent_scaling(metadata: Metadata, config: Config) -> Config:
    """Return the scaling with its factors of magnitude; a factor of 1 is none."""
    key = "rope.scaling.yarn_log_multiplier"
    magnitude = 10 * metadata.get(key, float, 0.0)
    if not 0 <= magnitude < math.inf:
        fail(f"deepseek2.{key} must be from 0 but is {magnitude / 10}.")
    none = {"type": "yarn", "rope_type": "yarn", "factor": 1.0}
    magnitude = float(f"{magnitude:.6g}")
    both = {"mscale": magnitude, "mscale_all_dim": magnitude}
    return {**(config.get("rope_scaling") or none), **both}


def _experts(metadata: Metadata) -> Config:
    count, used = metadata.size("expert_count"), metadata.size("expert_used_count")
    if not used <= count <= 1 << 16:
        fail(f"{used} of {count} experts must be used, of 65536 at most, but are not.")
    return {
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": metadata.size("expert_feed_forward_length"),
    }


def _query_scalar(config: Config, layers: int) -> float:
    """Return the size whose inverse square root scales the products of attention."""
    if config["num_hidden_layers"] == layers:
        return config["hidden_size"] / config["num_attention_heads"]
    return config["head_dim"]


def _period(metadata: Metadata, key: str, layers: int) -> int:
    """Return after how many layers one attends to all, from a flag for each layer."""
    flags = metadata.get(key, np.ndarray)
    everywhere = np.flatnonzero(np.logical_not(flags[:layers]))
    period = int(everywhere[0]) + 1 if len(everywhere) else layers + 1
    expected = [(i + 1) % period != 0 for i in range(layers)]
    if flags.astype(bool).tolist() != expected:
        fail(f"gemma3.{key} must repeat after some layers but does not.")
    return period


def _optional_size(metadata: Metadata, key: str) -> int | None:
    return metadata.size(key) if metadata.get(key, int, 0) else None


def _factor(metadata: Metadata, key: str) -> float:
    value = metadata.get(key, float, 0.0)
    if not 0 <= value < math.inf:
        fail(f"{metadata.architecture}.{key} must be from 0 but is {value}.")
    return float(str(np.float32(value)))

"""The architectures of GGUF files: settings of mlx-lm's models, and llama.cpp's keys.

The package `gguf` is the oracle: it has the names of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gguf
import numpy as np

from tests.support.gguf_writer import tiny_metadata

LAYERS = 2
_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": len(tiny_metadata()["tokenizer.ggml.tokens"]),
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
Config = Mapping[str, Any]
Write = Callable[[gguf.GGUFWriter, Config], None]


def _write_experts(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(
        config.get("moe_intermediate_size", config["intermediate_size"])
    )


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        arch: llama.cpp's name.
        model_type: mlx-lm's module.
        settings: Settings of its own.
        write: Function that writes the metadata of its own, from the model's settings.
        rotated: Whether the converter reorders q and k.
        plus_one: Whether the converter adds 1 to norms.
        relaid: Whether latent attention has the layout of the other DeepSeek.
    """

    arch: str
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    write: Write = lambda writer, config: None
    rotated: bool = False
    plus_one: bool = False
    relaid: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return {"model_type": self.model_type, **_SIZES, **self.settings}


_BIASES = {"attention_bias": True, "mlp_bias": True}


def _llama3(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the factors as `convert_hf_to_gguf.py` computes them."""
    writer.add_rope_dimension_count(16)
    factors = []
    for index in range(0, 16, 2):
        length = 2 * np.pi * 500000.0 ** (index / 16)
        if length < 8192 / 4:
            factors.append(1.0)
        elif length > 8192:
            factors.append(8.0)
        else:
            smooth = (8192 / length - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))


def _qwen3(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])


def _qwen2moe(writer: gguf.GGUFWriter, config: Config) -> None:
    _write_experts(writer, config)
    writer.add_expert_shared_feed_forward_length(
        config["shared_expert_intermediate_size"]
    )


def _qwen3moe(writer: gguf.GGUFWriter, config: Config) -> None:
    _write_experts(writer, config)
    _qwen3(writer, config)


def _gemma2(writer: gguf.GGUFWriter, config: Config) -> None:
    _qwen3(writer, config)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    writer.add_sliding_window(64)


def _gemma3(writer: gguf.GGUFWriter, config: Config) -> None:
    _qwen3(writer, config)
    writer.add_sliding_window(8)
    writer.add_sliding_window_pattern([True, False])
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


_FACTORS = {"short": [1.0, 1.1, 1.2, 1.3], "long": [1.0, 2.0, 4.0, 8.0]}
_LONGROPE = {
    "type": "longrope",
    "short_factor": _FACTORS["short"],
    "long_factor": _FACTORS["long"],
}


def _phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_dimension_count(8)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(2) / np.log(32))))
    writer.add_sliding_window(64)
    for name, factors in _FACTORS.items():
        tensor = f"rope_factors_{name}.weight"
        writer.add_tensor(tensor, np.array(factors, np.float32))


def _granite(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_attention_scale(0.125)
    writer.add_embedding_scale(12.0)
    writer.add_residual_scale(0.25)
    writer.add_logit_scale(8.0)


_GRANITE = {
    "attention_multiplier": 0.125,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.25,
    "logits_scaling": 8.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}
_YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


def _write_yarn(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(32.0)
    writer.add_rope_scaling_orig_ctx_len(4096)


def _gpt_oss(writer: gguf.GGUFWriter, config: Config) -> None:
    _write_experts(writer, config)
    _write_yarn(writer, config)
    writer.add_sliding_window(8)


_LATENT = {
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 32,
    "v_head_dim": 16,
    "n_shared_experts": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 2.5,
    "num_key_value_heads": 4,
    "topk_method": "greedy",
}


def _deepseek(writer: gguf.GGUFWriter, config: Config) -> None:
    _write_experts(writer, config)
    _write_yarn(writer, config)
    writer.add_rope_scaling_yarn_log_mul(0.1 * 0.707)
    writer.add_rope_dimension_count(8)
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_expert_shared_count(2)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_weights_scale(2.5)


def _deepseek2(writer: gguf.GGUFWriter, config: Config) -> None:
    _deepseek(writer, config)
    writer.add_key_length(32 + 8)
    writer.add_value_length(16)


def _deepseek2_split(writer: gguf.GGUFWriter, config: Config) -> None:
    _deepseek(writer, config)
    _write_split(writer, config)


def _deepseek3(writer: gguf.GGUFWriter, config: Config) -> None:
    _deepseek(writer, config)
    _write_split(writer, config)
    _write_sigmoid(writer, config)


def _deepseek3_joined(writer: gguf.GGUFWriter, config: Config) -> None:
    _deepseek2(writer, config)
    _write_sigmoid(writer, config)


def _write_split(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_key_length(config["kv_lora_rank"] + 8)
    writer.add_value_length(config["kv_lora_rank"])
    writer.add_key_length_mla(32 + 8)
    writer.add_value_length_mla(16)


def _write_sigmoid(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


FAMILIES = {
    "llama": Family("llama", "llama", rotated=True),
    "llama with biases": Family("llama", "llama", _BIASES, rotated=True),
    "llama 3": Family(
        "llama",
        "llama",
        {
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "rope_scaling": {
                "type": "llama3",
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        _llama3,
        rotated=True,
    ),
    "mistral": Family("llama", "llama", {"head_dim": 24}, _qwen3, rotated=True),
    "qwen2": Family("qwen2", "qwen2"),
    "qwen3": Family("qwen3", "qwen3", {"head_dim": 24}, _qwen3),
    "qwen2moe": Family(
        "qwen2moe",
        "qwen2_moe",
        {**_EXPERTS, "shared_expert_intermediate_size": 64},
        _qwen2moe,
    ),
    "qwen3moe": Family(
        "qwen3moe",
        "qwen3_moe",
        {
            **_EXPERTS,
            "head_dim": 24,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        },
        _qwen3moe,
    ),
    "gemma2": Family(
        "gemma2",
        "gemma2",
        {"head_dim": 24, "query_pre_attn_scalar": 24},
        _gemma2,
        plus_one=True,
    ),
    "gemma3": Family(
        "gemma3",
        "gemma3_text",
        {
            "head_dim": 24,
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"type": "linear", "factor": 8.0},
        },
        _gemma3,
        plus_one=True,
    ),
    "phi3": Family(
        "phi3",
        "phi3",
        {
            "partial_rotary_factor": 0.5,
            "rope_scaling": _LONGROPE,
            "original_max_position_embeddings": 32,
        },
        _phi3,
    ),
    "granite": Family("granite", "granite", _GRANITE, _granite, rotated=True),
    "olmo2": Family("olmo2", "olmo2"),
    "smollm3": Family("smollm3", "smollm3", {"num_hidden_layers": 4}, rotated=True),
    "gpt-oss": Family(
        "gpt-oss",
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "head_dim": 16,
            "sliding_window": 8,
            "rope_scaling": _YARN,
        },
        _gpt_oss,
    ),
    "deepseek2": Family("deepseek2", "deepseek_v2", _LATENT, _deepseek2),
    "deepseek3": Family(
        "deepseek2",
        "deepseek_v3",
        {**_LATENT, "q_lora_rank": 32, "topk_method": "noaux_tc"},
        _deepseek3,
    ),
    "deepseek2, split": Family(
        "deepseek2", "deepseek_v2", _LATENT, _deepseek2_split, relaid=True
    ),
    "deepseek3, joined": Family(
        "deepseek2",
        "deepseek_v3",
        {**_LATENT, "q_lora_rank": 32, "topk_method": "noaux_tc"},
        _deepseek3_joined,
        relaid=True,
    ),
}


# Inputs of every matrix that a block of 256 weights divides, but those of a head.
_WIDTHS = (
    *("hidden_size", "intermediate_size", "moe_intermediate_size"),
    *("shared_expert_intermediate_size", "kv_lora_rank", "q_lora_rank"),
)


def widened(family: Family) -> Family:
    """Return the family in sizes that every type of GGUF can hold."""
    config = family.config
    wide = {name: 256 for name in _WIDTHS if config.get(name)}
    wide["num_attention_heads"] = 32 if config.get("head_dim") == 24 else 16
    if config["num_key_value_heads"] == config["num_attention_heads"]:
        wide["num_key_value_heads"] = wide["num_attention_heads"]
    return replace(family, settings={**family.settings, **wide})

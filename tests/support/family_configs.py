"""Tiny configurations of all model families of mlx-lm, derived from their ModelArgs.

A field gets the value of its name in `_VALUES`, else its default, else a value of its
type. `_OVERRIDES` has what a family needs beyond that.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from functools import cache
from typing import Any

import mlx_lm.models

VOCABULARY = 320
LAYERS = 4

_VALUES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "model_dim", "block_dim"), 64),
    **dict.fromkeys(
        ("intermediate_size", "ffn_hidden_size", "hidden_dim", "ff_intermediate_size"),
        128,
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    "num_transformer_layers": LAYERS,
    "decay_low_rank_dim": 64,
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("vocab_size", "num_vocab", "vocab_size_per_layer_input"), 320),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "norm_eps"), 1e-5),
    **dict.fromkeys(("layer_norm_epsilon", "layernorm_epsilon", "norm_epsilon"), 1e-5),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_embedding_base"), 1e4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 128),
    **dict.fromkeys(("head_dim", "kv_channels", "hidden_size_per_head"), 16),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size"), 8),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("shared_intermediate_size", "expert_ffn_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size_mlp", "n_inner"), 128),
    **dict.fromkeys(("a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim"), 64),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 32),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 32),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 32),
}

_MOE = {"moe_intermediate_size": 64}
_MLA_LAST_DENSE = {**_MOE, "first_k_dense_replace": 1}
_SWA = ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
_KDA = {
    "kda_layers": [1, 3],
    "full_attn_layers": [2, 4],
    "num_heads": 4,
    "head_dim": 32,
    "short_conv_kernel_size": 4,
}
_LLAMA_4_ROPE = {
    "rope_theta": 1e4,
    "rope_type": "default",
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 16,
}
_YARN = {
    "type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_BOTH_ROPES = {
    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}
_NO_AUX = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True}
_BLOCK = {
    "attention": {"n_heads_in_group": 2},
    "ffn": {"ffn_mult": 1.0},
}

_LONGCAT = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "expert_ffn_hidden_size": 64,
}

_OVERRIDES: dict[str, dict[str, Any]] = {
    "Klear": {**_MOE, "mlp_only_layers": [0], "decoder_sparse_step": 1},
    "afm7": {"num_kv_reuse_layers": 2},
    "afmoe": {**_MOE, "layer_types": _SWA, "num_dense_layers": 1},
    "baichuan_m1": {"sliding_window_layers": [0, 2]},
    "bailing_moe_linear": {**_MOE, "layer_group_size": 2},
    "bailing_hybrid": {**_MOE, "layer_group_size": 2},
    "bailing_moe_v3": {**_MOE, "layer_group_size": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
    },
    "deepseek": _MLA_LAST_DENSE,
    "deepseek_v2": {**_MLA_LAST_DENSE, "rope_scaling": _YARN},
    "deepseek_v3": _MLA_LAST_DENSE,
    "deepseek_v32": {**_MLA_LAST_DENSE, "index_n_heads": 2, "index_head_dim": 32},
    "deepseek_v41": {
        **_MOE,
        "head_dim": 64,
        "compress_ratios": [0, 0, 4, 4],
        "index_n_heads": 2,
        "index_head_dim": 32,
        "o_groups": 2,
    },
    "exaone4": {
        "sliding_window_pattern": "LLLG",
        "layer_types": _SWA,
        "rope_scaling": None,
    },
    "exaone_moe": {
        **_MOE,
        "layer_types": _SWA,
        "is_moe_layer": [False, True, True, True],
    },
    "gear": {"layer_types": ["conv", "full_attention", *_SWA[1:3]]},
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n": {
        "layer_types": _SWA[1:3] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
        "hidden_size_per_layer_input": 32,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_active_idx": 0,
        "laurel_rank": 32,
        "final_logit_softcapping": 30.0,
        "vocab_size": 320,
        "vocab_size_per_layer_input": 320,
    },
    "gemma4_text": {
        "sliding_window_pattern": 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 32,
        "global_head_dim": 32,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        **_MOE,
    },
    "glm4_moe": {**_NO_AUX, **_MOE, "first_k_dense_replace": 1, "rope_scaling": None},
    "glm4_moe_lite": {**_NO_AUX, **_MLA_LAST_DENSE},
    "glm_moe_dsa": {
        **_NO_AUX,
        **_MLA_LAST_DENSE,
        "rope_parameters": {"rope_theta": 1e4},
        "index_n_heads": 2,
        "index_head_dim": 32,
    },
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2,
        "shared_intermediate_size": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
    },
    "hunyuan": {
        "cla_share_factor": 2,
        "use_cla": True,
        "use_mixed_mlp_moe": True,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
    },
    "iquestloopcoder": {"loop_num": 2},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "kimi_k3": {
        **_MOE,
        "linear_attn_config": _KDA,
        "activation_situ_beta": 1.0,
        "attn_res_block_size": 2,
        "first_k_dense_replace": 1,
        "num_experts_per_token": 2,
        "num_key_value_heads": 4,
    },
    "kimi_linear": {
        **_MOE,
        "linear_attn_config": _KDA,
        "first_k_dense_replace": 1,
        "num_experts_per_token": 2,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {**_MOE, "layer_types": ["conv", "full_attention"] * 2},
    "llama4": {
        "attention_chunk_size": 8,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 128,
        "intermediate_size": 64,
        "use_qk_norm": True,
        "rope_scaling": None,
        "num_experts_per_tok": 1,
    },
    "llama4_text": {"no_rope_layers": [1, 0, 1, 0]},
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": {**_LONGCAT, "ngram_vocab_size_ratio": 4},
    "mamba2": {"num_heads": 8, "head_dim": 16, "time_step_limit": [0.001, 100.0]},
    "mellum": {**_MOE, "layer_types": _SWA, "rope_parameters": _BOTH_ROPES},
    "mimo_v2_flash": {
        **_NO_AUX,
        **_MOE,
        "moe_layer_freq": [0, 1, 1, 1],
        "hybrid_layer_pattern": [0, 1, 1, 0],
        "swa_head_dim": 32,
        "swa_v_head_dim": 32,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "sliding_window_size": 8,
        "head_dim": 32,
        "partial_rotary_factor": 0.5,
    },
    "minicpm3": {"rope_scaling": {"short_factor": 1.0, "long_factor": 1.0}},
    "minimax_m3_vl": {
        "intermediate_size": 64,
        "dense_intermediate_size": 128,
        "shared_intermediate_size": 64,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "ministral3": {"rope_parameters": _LLAMA_4_ROPE},
    "mistral4": {**_MOE, "rope_parameters": _LLAMA_4_ROPE},
    "muse_spark": {
        **_MOE,
        "moe_hidden_size": 64,
        "post_norm_eps": 1e-5,
        "layer_rope_theta": [1e4, 1e4, 1e4, 0],
        "layer_types": _SWA,
        "final_logit_softcapping": 30.0,
        "output_multiplier": 1.0,
        "rope_parameters": {"rope_theta": 1e4},
        "num_shared_experts": 0,
    },
    "nemotron-nas": {"block_configs": [_BLOCK] * 4},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron_h": {
        **_MOE,
        "hybrid_override_pattern": ["M", "*", "-", "E"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "moe_shared_expert_intermediate_size": 64,
        "conv_kernel": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    },
    "openelm": {
        "num_query_heads": [4] * 4,
        "num_kv_heads": [2] * 4,
        "ffn_multipliers": [1.0, 2.0, 2.0, 2.0],
        "ffn_dim_divisor": 32,
    },
    "phi3small": {"vocab_size": 100352},  # it masks tokens by their numbers
    "phixtral": {"rotary_dim": 8},
    "plamo": {"n_shared_head": 2},
    "qwen3_moe": {**_MOE, "mlp_only_layers": [], "decoder_sparse_step": 1},
    "qwen3_next": {
        **_MOE,
        **_LINEAR,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 64,
        "full_attention_interval": 2,
    },
    "qwen3_5": {**_LINEAR, "full_attention_interval": 2, "num_experts": 0},
    "qwen3_5_moe": {
        **_MOE,
        **_LINEAR,
        "full_attention_interval": 2,
        "shared_expert_intermediate_size": 64,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    # mlx-lm's tied head reads the embedding's weight, which fails when quantized.
    "seed_oss": {"tie_word_embeddings": False},
    "spark2_5": {"rope_parameters": _BOTH_ROPES},
    "step3p5": {
        **_MOE,
        "layer_types": _SWA,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "share_expert_dim": 64,
        "moe_layers_enum": "1,2,3",
        "sliding_window": 8,
    },
}

# Families whose text model is configured by `text_config`: of another family, or of a
# class of the same module.
_TEXT: dict[str, str] = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n.TextConfig",
    "gemma4": "gemma4_text",
    "kimi_k25": "deepseek_v3",
    "kimi_k3": "kimi_k3.TextArgs",
    "kimi_vl": "deepseek_v3",
    "lfm2-vl": "lfm2",
    "llama4": "llama4.TextArgs",
    "minimax_m3_vl": "minimax_m3_vl.TextArgs",
    "mistral3": "llama",
    "muse_spark": "muse_spark.TextArgs",
    "pixtral": "llama",
    "qwen2_vl": "qwen2",
    "qwen3_5": "qwen3_5.TextModelArgs",
    "qwen3_5_moe": "qwen3_5.TextModelArgs",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}


# Its weights are packed for a Hadamard transform, which no random weights are.
_NOT_RANDOM = {"prism_hadamard_qwen35"}


@cache
def all_families() -> tuple[str, ...]:
    """Return the names of mlx-lm's modules that have Model and ModelArgs."""
    names = []
    for found in pkgutil.iter_modules(mlx_lm.models.__path__):
        if found.name in _NOT_RANDOM:
            continue
        try:
            module = importlib.import_module(f"mlx_lm.models.{found.name}")
        except (ImportError, SystemExit):  # olmo exits without its own package
            continue
        if hasattr(module, "Model") and hasattr(module, "ModelArgs"):
            names.append(found.name)
    return tuple(names)


def config(family: str) -> dict[str, Any]:
    """Return the config.json of a family's tiny model."""
    outer = {**_fields(f"{family}.ModelArgs"), "model_type": family}
    if family not in _TEXT:
        return {**outer, **_OVERRIDES.get(family, {})}
    inner = _TEXT[family]
    if "." in inner:
        text = {**_fields(inner), **_OVERRIDES[family], "model_type": family}
    else:
        text = config(inner)
    return {**outer, "text_config": text}


def _fields(path: str) -> dict[str, Any]:
    """Return the values of a configuration class, without those left at defaults."""
    family, _, name = path.rpartition(".")
    args = getattr(importlib.import_module(f"mlx_lm.models.{family}"), name)
    values = {f.name: _value(f) for f in dataclasses.fields(args)}
    return {k: v for k, v in values.items() if v is not dataclasses.MISSING}


def _value(field: dataclasses.Field) -> Any:
    if field.name in _VALUES:
        return _VALUES[field.name]
    has_default = field.default_factory is not dataclasses.MISSING
    if has_default or field.default is not dataclasses.MISSING:
        return dataclasses.MISSING
    kind = str(field.type)
    for name, value in (("bool", False), ("int", 2), ("float", 1.0)):
        if name in kind:
            return value
    return dataclasses.MISSING

"""Tiny models of mlx-lm as GGUF files, by the package `gguf`: its names, keys, blocks.

The package is the oracle: it has the names of tensors and keys, and the quantizers.
The changes of llama.cpp's `convert_hf_to_gguf.py` to weights are written here again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

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
Write = Callable[[gguf.GGUFWriter], None]


def _write_experts(writer: gguf.GGUFWriter) -> None:
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(32)


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        arch: llama.cpp's name.
        model_type: mlx-lm's module.
        settings: Settings of its own.
        write: Function that writes the metadata of its own.
        rotated: Whether the converter reorders q and k.
        plus_one: Whether the converter adds 1 to norms.
        relaid: Whether latent attention has the layout of the other DeepSeek.
    """

    arch: str
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    write: Write = lambda writer: None
    rotated: bool = False
    plus_one: bool = False
    relaid: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return {"model_type": self.model_type, **_SIZES, **self.settings}


_BIASES = {"attention_bias": True, "mlp_bias": True}


def _llama3(writer: gguf.GGUFWriter) -> None:
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


def _qwen3(writer: gguf.GGUFWriter) -> None:
    writer.add_key_length(24)
    writer.add_value_length(24)


def _qwen2moe(writer: gguf.GGUFWriter) -> None:
    _write_experts(writer)
    writer.add_expert_shared_feed_forward_length(64)


def _qwen3moe(writer: gguf.GGUFWriter) -> None:
    _write_experts(writer)
    _qwen3(writer)


def _gemma2(writer: gguf.GGUFWriter) -> None:
    _qwen3(writer)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    writer.add_sliding_window(64)


def _gemma3(writer: gguf.GGUFWriter) -> None:
    _qwen3(writer)
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


def _phi3(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_dimension_count(8)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(2) / np.log(32))))
    writer.add_sliding_window(64)
    for name, factors in _FACTORS.items():
        tensor = f"rope_factors_{name}.weight"
        writer.add_tensor(tensor, np.array(factors, np.float32))


def _granite(writer: gguf.GGUFWriter) -> None:
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


def _write_yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(32.0)
    writer.add_rope_scaling_orig_ctx_len(4096)


def _gpt_oss(writer: gguf.GGUFWriter) -> None:
    _write_experts(writer)
    _write_yarn(writer)
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


def _deepseek(writer: gguf.GGUFWriter) -> None:
    _write_experts(writer)
    _write_yarn(writer)
    writer.add_rope_scaling_yarn_log_mul(0.1 * 0.707)
    writer.add_rope_dimension_count(8)
    writer.add_kv_lora_rank(32)
    writer.add_expert_shared_count(2)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_weights_scale(2.5)


def _deepseek2(writer: gguf.GGUFWriter) -> None:
    _deepseek(writer)
    writer.add_key_length(32 + 8)
    writer.add_value_length(16)


def _deepseek2_split(writer: gguf.GGUFWriter) -> None:
    _deepseek(writer)
    _write_split(writer)


def _deepseek3(writer: gguf.GGUFWriter) -> None:
    _deepseek(writer)
    _write_split(writer)
    _write_sigmoid(writer)


def _deepseek3_joined(writer: gguf.GGUFWriter) -> None:
    _deepseek2(writer)
    _write_sigmoid(writer)


def _write_split(writer: gguf.GGUFWriter) -> None:
    writer.add_key_length(32 + 8)
    writer.add_value_length(32)
    writer.add_key_length_mla(32 + 8)
    writer.add_value_length_mla(16)


def _write_sigmoid(writer: gguf.GGUFWriter) -> None:
    writer.add_q_lora_rank(32)
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


def random_model(family: Family, seed: int = 0) -> nn.Module:
    """Return the model of mlx-lm, with random weights, norms and biases included."""
    module = importlib.import_module(f"mlx_lm.models.{family.model_type}")
    model = module.Model(module.ModelArgs.from_dict(family.config))
    if family.plus_one and family.model_type == "gemma3_text":
        model.sanitize({})  # ties the head
    mx.random.seed(seed)
    random = tree_map(lambda a: mx.random.normal(a.shape) * 0.2, model.parameters())
    model.update(random)
    return model


def write_family(
    path: Path,
    family: Family,
    model: nn.Module,
    kinds: Callable[[str, tuple[int, ...]], str] = lambda name, shape: "F32",
    split_max_tensors: int = 0,
) -> dict[str, np.ndarray]:
    """Write a model.

    Args:
        path: The file.
        family: Its family.
        model: The model.
        kinds: Function from a tensor's name and shape to ggml's name of a type, for
            matrices.
        split_max_tensors: Tensors of a part, if the model is split.

    Returns:
        Path of each parameter to its value in the file: dequantized.
    """
    writer = gguf.GGUFWriter(path, family.arch, split_max_tensors=split_max_tensors)
    config = family.config
    _write_tokenizer(writer)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    latent = (family.model_type == "deepseek_v3") != family.relaid
    writer.add_head_count_kv(1 if latent else config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    family.write(writer)
    values = {}
    named = dict(tree_flatten(model.parameters()))
    for name, array in (_relaid(named, family) if family.relaid else named).items():
        value = _as_written(np.array(array), name, family)
        theirs = _name(name, family)
        kind = "F32"
        if value.ndim > 1 and "ffn_gate_inp" not in theirs and "bias" not in theirs:
            kind = kinds(theirs, value.shape)
        number = gguf.GGMLQuantizationType[kind]
        data = quantize(value, number)
        writer.add_tensor(theirs, data, raw_dtype=number)
        stored = gguf.quants.dequantize(data, number)
        values[name] = _as_read(stored, array.shape, name, family)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _relaid(values, family) if family.relaid else values


def _relaid(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return the other layout of keys and values: one matrix, or two."""
    heads, keys = family.config["num_attention_heads"], 32
    found = {}
    for name, value in values.items():
        layer, _, last = name.removesuffix(".weight").rpartition(".")
        if last == "kv_b_proj":
            parts = np.array(value).reshape(heads, -1, value.shape[-1])
            keyed = np.ascontiguousarray(parts[:, :keys].swapaxes(1, 2))
            found[f"{layer}.embed_q.weight"] = keyed
            found[f"{layer}.unembed_out.weight"] = parts[:, keys:]
        elif last == "embed_q":
            parts = np.array(value).swapaxes(1, 2)
            parts = [parts, np.array(values[f"{layer}.unembed_out.weight"])]
            joined = np.concatenate(parts, 1).reshape(-1, value.shape[1])
            found[f"{layer}.kv_b_proj.weight"] = joined
        elif last != "unembed_out":
            found[name] = value
    return found


def quantize(value: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Return a tensor's blocks: by `gguf`, or random ones if it has no quantizer."""
    try:
        return gguf.quants.quantize(value.astype(np.float32), kind)
    except NotImplementedError:
        rng = np.random.default_rng(value.size)
        return random_blocks(rng, value.shape, kind)


# Offsets of the fp16 numbers of a block.
_FP16 = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}
_FP16 |= dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))


def random_blocks(
    rng: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType
) -> np.ndarray:
    """Return random blocks with moderate scales: all codes occur."""
    elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // elements, nbytes))
    blocks = blocks.astype(np.uint8)
    if kind.name == "MXFP4":
        blocks[..., 0] = rng.integers(118, 124, blocks.shape[:-1])
    else:
        for at in _FP16.get(kind.name, (0,)):
            scales = rng.uniform(1e-4, 1e-3, blocks.shape[:-1]).astype("<f2")
            blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    tiny = tiny_metadata()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tiny["tokenizer.ggml.tokens"])
    writer.add_token_types(tiny["tokenizer.ggml.token_type"].tolist())
    writer.add_token_merges(tiny["tokenizer.ggml.merges"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def _name(name: str, family: Family) -> str:
    """Return the tensor's name, by the package's table of Hugging Face's names."""
    if ".embed_q." in name or ".unembed_out." in name:
        part = "attn_k_b" if ".embed_q." in name else "attn_v_b"
        return f"blk.{name.split('.')[2]}.{part}.weight"
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == family.arch)
    table = gguf.get_tensor_name_map(arch, family.config["num_hidden_layers"])
    theirs = name.replace("switch_mlp", "experts")
    theirs = theirs.replace("e_score_correction_bias", "e_score_correction.bias")
    if theirs.endswith(".sinks"):
        theirs += ".weight"
    found = table.get_name(theirs, try_suffixes=(".weight", ".bias"))
    assert found is not None, f"gguf has no name for {name}"
    return found


def _heads(name: str, family: Family) -> int | None:
    if not family.rotated or not any(p in name for p in ("q_proj", "k_proj")):
        return None
    kind = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
    return family.config[kind]


def _as_written(value: np.ndarray, name: str, family: Family) -> np.ndarray:
    """Do what llama.cpp's converter does."""
    if family.plus_one and "norm" in name:
        return value + 1
    if name.endswith("shared_expert_gate.weight"):
        return value[0]
    if (heads := _heads(name, family)) is not None:
        halves = value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape)
    return value


def _as_read(
    stored: np.ndarray, shape: tuple[int, ...], name: str, family: Family
) -> np.ndarray:
    """Undo it."""
    if family.plus_one and "norm" in name:
        return stored - 1
    if (heads := _heads(name, family)) is not None:
        pairs = stored.reshape(heads, len(stored) // heads // 2, 2, *stored.shape[1:])
        return pairs.swapaxes(1, 2).reshape(shape)
    return stored.reshape(shape)

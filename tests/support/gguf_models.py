"""Random models of mlx-lm as GGUF files, by the package `gguf`: its names, its writer.

The changes of llama.cpp's `convert_hf_to_gguf.py` to weights are written here again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from tests.support.gguf_blocks import quantize
from tests.support.gguf_families import Family
from tests.support.gguf_writer import tiny_metadata

Blocks = Callable[[np.ndarray, gguf.GGMLQuantizationType], np.ndarray]


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
    blocks: Blocks = quantize,
) -> dict[str, np.ndarray]:
    """Write a model.

    Args:
        path: The file.
        family: Its family.
        model: The model.
        kinds: Function from a tensor's name and shape to ggml's name of a type, for
            matrices.
        split_max_tensors: Tensors of a part, if the model is split.
        blocks: Function from values and a type to the blocks of a tensor.

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
    family.write(writer, config)
    values = {}
    named = dict(tree_flatten(model.parameters()))
    for name, array in (_relaid(named, family) if family.relaid else named).items():
        value = _as_written(np.array(array), name, family)
        theirs = _name(name, family)
        kind = "F32"
        if value.ndim > 1 and "ffn_gate_inp" not in theirs and "bias" not in theirs:
            kind = kinds(theirs, value.shape)
        number = gguf.GGMLQuantizationType[kind]
        data = blocks(value, number)
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

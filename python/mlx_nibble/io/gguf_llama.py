"""A llama-architecture GGUF as the weights and configuration of mlx-lm's llama.

llama.cpp's converter reorders the rows of the q and k projections, so that the
two halves that rotary embedding pairs lie side by side. Only rows (output
channels) move, hence the order is undone on packed weights as they are.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from mlx_nibble.formats import Format
from mlx_nibble.io.gguf import GGUF, fail
from mlx_nibble.io.gguf_blocks import GROUP_SIZE, Affine

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def llama_config(file: GGUF) -> dict[str, Any]:
    """The ``config.json`` of the model, without its quantization.

    Raises:
        ValueError: If the architecture is not llama, or if the metadata lack a
            value, hold a wrong one, or ask for what mlx-lm's llama cannot do.
    """
    architecture = file.get("general.architecture", str)
    if architecture != "llama":
        fail(f"architecture 'llama' is supported but this is {architecture!r}.")
    hidden = _size(file, "embedding_length")
    heads = _size(file, "attention.head_count")
    kv_heads = _size(file, "attention.head_count_kv", heads)
    if heads % kv_heads:
        fail(
            f"{heads} attention heads must divide evenly among {kv_heads} key-value "
            "heads but do not."
        )
    if hidden % heads and "llama.attention.key_length" not in file.metadata:
        fail(f"embedding_length {hidden} must be a multiple of the {heads} heads.")
    head_dim = _size(file, "attention.key_length", hidden // heads)
    _require_plain_rope(file, head_dim)
    eps = file.get("llama.attention.layer_norm_rms_epsilon", float)
    theta = file.get("llama.rope.freq_base", float, 10000.0)
    if not (0 < eps < 1 and 0 < theta < float("inf")):
        fail(f"norm epsilon and rope base must be positive but got {eps} and {theta}.")
    tokens = file.get("tokenizer.ggml.tokens", list)
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": _size(file, "feed_forward_length"),
        "num_hidden_layers": _size(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        # An fp32 number of few digits: the shortest decimal that names it.
        "rms_norm_eps": float(str(np.float32(eps))),
        "rope_theta": float(str(np.float32(theta))),
        "max_position_embeddings": _size(file, "context_length"),
        "vocab_size": len(tokens),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": token_id(file, "bos"),
        "eos_token_id": token_id(file, "eos"),
    }


def token_id(file: GGUF, role: str) -> int | None:
    """The id of the ``bos``, ``eos``, ``unknown`` or ``padding`` token, if any."""
    key = f"tokenizer.ggml.{role}_token_id"
    if key not in file.metadata:
        return None
    value = file.get(key, int)
    vocabulary = len(file.get("tokenizer.ggml.tokens", list))
    if not 0 <= value < vocabulary:
        fail(f"{key} must be below {vocabulary} but is {value}.")
    return value


def llama_tensors(file: GGUF, config: dict[str, Any]) -> dict[str, str]:
    """mlx-lm's module paths and the GGUF tensors that fill them.

    Args:
        file: From ``read_gguf``.
        config: From ``llama_config``.

    Returns:
        Module path (``model.layers.0.self_attn.q_proj``) to tensor name
        (``blk.0.attn_q.weight``).

    Raises:
        ValueError: If a tensor is missing, has a shape that the configuration
            does not give it, or has no place in the model.
    """
    layers = config["num_hidden_layers"]
    # Before a dictionary is made of a number that a stranger wrote.
    if layers * len(_LAYER) > len(file.tensors):
        fail(
            f"{layers} layers need {layers * len(_LAYER)} tensors but the file has "
            f"{len(file.tensors)}."
        )
    shapes = _layer_shapes(config)
    expected = {
        "token_embd.weight": ("model.embed_tokens", shapes["token_embd"]),
        "output_norm.weight": ("model.norm", shapes["attn_norm"]),
    }
    if not config["tie_word_embeddings"]:
        expected["output.weight"] = ("lm_head", shapes["token_embd"])
    for layer in range(layers):
        for ours, theirs in _LAYER.items():
            path = f"model.layers.{layer}.{theirs}"
            expected[f"blk.{layer}.{ours}.weight"] = (path, shapes[ours])

    for name, (_, shape) in expected.items():
        if name not in file.tensors:
            fail(f"tensor {name!r} is missing.")
        if file.tensors[name].shape != shape:
            got = file.tensors[name].shape
            fail(f"tensor {name!r} must have shape {shape} but has {got}.")
    if strangers := file.tensors.keys() - expected.keys():
        fail(f"tensor {min(strangers)!r} has no place in a llama model.")
    return {path: name for name, (path, _) in expected.items()}


def unpermute(
    tensor: Affine | np.ndarray, name: str, config: dict[str, Any]
) -> Affine | np.ndarray:
    """Put the rows of a q or k projection in mlx-lm's order; others as they are.

    Args:
        tensor: The data of ``name``, [N, K].
        name: The tensor's name in the GGUF.
        config: From ``llama_config``.
    """
    part = name.split(".")[-2]
    if part not in ("attn_q", "attn_k"):
        return tensor
    heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]

    def reorder(rows: np.ndarray) -> np.ndarray:
        pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)

    if isinstance(tensor, np.ndarray):
        return reorder(tensor)
    return Affine(
        reorder(tensor.weight),
        reorder(tensor.scales),
        reorder(tensor.biases),
        tensor.bits,
    )


def quantization_config(bits: dict[str, int]) -> dict[str, Any]:
    """mlx-lm's ``quantization`` entry: the common case, and each exception.

    Args:
        bits: Module path to bits, of the quantized modules.
    """
    common = Counter(bits.values()).most_common(1)[0][0]
    form = Format(common, GROUP_SIZE).config
    overrides = {
        path: {**form, "bits": width} for path, width in bits.items() if width != common
    }
    return {**form, **overrides}


def _size(file: GGUF, key: str, default: int | None = None) -> int:
    value = file.get(f"llama.{key}", int, default)
    if not 0 < value < 2**31:
        fail(f"llama.{key} must be from 1 to 2³¹ − 1 but is {value}.")
    return value


def _require_plain_rope(file: GGUF, head_dim: int) -> None:
    rotated = _size(file, "rope.dimension_count", head_dim)
    if rotated != head_dim or head_dim % 2:
        fail(
            f"rotary embedding must cover heads of an even size but covers {rotated} "
            f"of {head_dim}."
        )
    scaling = file.get("llama.rope.scaling.type", str, "none")
    if scaling != "none":
        fail(f"rope scaling must be 'none' but is {scaling!r}.")


def _layer_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    head_dim = config["head_dim"]
    q = config["num_attention_heads"] * head_dim
    kv = config["num_key_value_heads"] * head_dim
    return {
        "token_embd": (config["vocab_size"], hidden),
        "attn_norm": (hidden,),
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, q),
        "ffn_norm": (hidden,),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }

"""Places of tensors that several of llama.cpp's architectures share.

Names of tensors are those of the package `gguf` (MODEL_TENSORS), paths those of the
classes in `mlx_lm.models`.
"""

from __future__ import annotations

from dataclasses import replace

from mlx_nibble.conversion.gguf_architectures import Place, Places

HEAD = {
    "output.weight": Place("lm_head.weight", ("vocabulary", "hidden"), needs="head")
}
"""The head, of models that have one of their own."""
OUTSIDE = {
    "token_embd.weight": Place("model.embed_tokens.weight", ("vocabulary", "hidden")),
    "output_norm.weight": Place("model.norm.weight", ("hidden",)),
    **HEAD,
}
"""What most models have outside of their layers."""
NORMS = {
    "attn_norm.weight": Place("input_layernorm.weight", ("hidden",)),
    "ffn_norm.weight": Place("post_attention_layernorm.weight", ("hidden",)),
}
"""The two norms of a layer."""
HEAD_NORMS = {
    "attn_q_norm.weight": Place("self_attn.q_norm.weight", ("head",)),
    "attn_k_norm.weight": Place("self_attn.k_norm.weight", ("head",)),
}
"""Norms of the heads of queries and keys."""


def attention(rotated: bool = False, *, biases: str | None = None) -> Places:
    """Return the four projections.

    Args:
        rotated: Whether llama.cpp's converter reordered the rows of q and k.
        biases: Fact that lets q, k and v have biases.
    """
    heads, groups = ("heads", "groups") if rotated else (None, None)
    places = {
        "attn_q.weight": Place("self_attn.q_proj.weight", ("q", "hidden"), None, heads),
        "attn_k.weight": Place(
            "self_attn.k_proj.weight", ("kv", "hidden"), None, groups
        ),
        "attn_v.weight": Place("self_attn.v_proj.weight", ("kv", "hidden")),
        "attn_output.weight": Place("self_attn.o_proj.weight", ("hidden", "q")),
    }
    if biases is not None:
        places |= {
            "attn_q.bias": Place("self_attn.q_proj.bias", ("q",), biases, heads),
            "attn_k.bias": Place("self_attn.k_proj.bias", ("kv",), biases, groups),
            "attn_v.bias": Place("self_attn.v_proj.bias", ("kv",), biases),
        }
    return places


OUTPUT_BIAS = {
    "attn_output.bias": Place("self_attn.o_proj.bias", ("hidden",), "attention_bias")
}
"""The bias of the output projection."""


def mlp(name: str = "", path: str = "mlp", size: str = "ffn") -> Places:
    """Return the three projections of a gated MLP."""
    return {
        f"ffn_gate{name}.weight": Place(f"{path}.gate_proj.weight", (size, "hidden")),
        f"ffn_up{name}.weight": Place(f"{path}.up_proj.weight", (size, "hidden")),
        f"ffn_down{name}.weight": Place(f"{path}.down_proj.weight", ("hidden", size)),
    }


def experts(path: str) -> Places:
    """Return the three stacks of experts."""
    return {
        name: replace(place, shape=("experts", *place.shape))
        for name, place in mlp("_exps", path, "expert").items()
    }


def router(path: str) -> Places:
    """Return the router of a mixture of experts."""
    place = Place(f"{path}.weight", ("experts", "hidden"), plain=True)
    return {"ffn_gate_inp.weight": place}


MLP_BIASES = {
    "ffn_gate.bias": Place("mlp.gate_proj.bias", ("ffn",), "mlp_bias"),
    "ffn_up.bias": Place("mlp.up_proj.bias", ("ffn",), "mlp_bias"),
    "ffn_down.bias": Place("mlp.down_proj.bias", ("hidden",), "mlp_bias"),
}
"""The biases of a gated MLP."""
LLAMA_LAYER = {
    **NORMS,
    **attention(rotated=True, biases="attention_bias"),
    **OUTPUT_BIAS,
    **MLP_BIASES,
}
"""A layer of llama, without its MLP."""
SANDWICH = {
    "attn_norm.weight": Place("input_layernorm.weight", ("hidden",), plus_one=True),
    "post_attention_norm.weight": Place(
        "post_attention_layernorm.weight", ("hidden",), plus_one=True
    ),
    "ffn_norm.weight": Place(
        "pre_feedforward_layernorm.weight", ("hidden",), plus_one=True
    ),
    "post_ffw_norm.weight": Place(
        "post_feedforward_layernorm.weight", ("hidden",), plus_one=True
    ),
}
"""The four norms of a layer of Gemma."""
GEMMA_OUTSIDE = {
    "token_embd.weight": OUTSIDE["token_embd.weight"],
    "output_norm.weight": Place("model.norm.weight", ("hidden",), plus_one=True),
}
"""What Gemma has outside of its layers."""
SHARED = mlp("_shexp", "mlp.shared_experts", "shared")
"""The shared experts of DeepSeek."""

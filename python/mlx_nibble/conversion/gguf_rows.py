"""The table of llama.cpp's architectures: a new architecture is a row.

Names of tensors are those of the package `gguf` (MODEL_TENSORS), paths those of the
classes in `mlx_lm.models`.
"""

from __future__ import annotations

from dataclasses import replace

from mlx_nibble.conversion import gguf_settings as settings
from mlx_nibble.conversion.gguf_architectures import Architecture, Place, Places
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF

_HEAD = {
    "output.weight": Place("lm_head.weight", ("vocabulary", "hidden"), needs="head")
}
_OUTSIDE = {
    "token_embd.weight": Place("model.embed_tokens.weight", ("vocabulary", "hidden")),
    "output_norm.weight": Place("model.norm.weight", ("hidden",)),
    **_HEAD,
}
_NORMS = {
    "attn_norm.weight": Place("input_layernorm.weight", ("hidden",)),
    "ffn_norm.weight": Place("post_attention_layernorm.weight", ("hidden",)),
}
_HEAD_NORMS = {
    "attn_q_norm.weight": Place("self_attn.q_norm.weight", ("head",)),
    "attn_k_norm.weight": Place("self_attn.k_norm.weight", ("head",)),
}


def _attention(rotated: bool = False, *, biases: str | None = None) -> Places:
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


_OUTPUT_BIAS = {
    "attn_output.bias": Place("self_attn.o_proj.bias", ("hidden",), "attention_bias")
}


def _mlp(name: str = "", path: str = "mlp", size: str = "ffn") -> Places:
    """Return the three projections of a gated MLP."""
    return {
        f"ffn_gate{name}.weight": Place(f"{path}.gate_proj.weight", (size, "hidden")),
        f"ffn_up{name}.weight": Place(f"{path}.up_proj.weight", (size, "hidden")),
        f"ffn_down{name}.weight": Place(f"{path}.down_proj.weight", ("hidden", size)),
    }


def _experts(path: str) -> Places:
    """Return the three stacks of experts."""
    return {
        name: replace(place, shape=("experts", *place.shape))
        for name, place in _mlp("_exps", path, "expert").items()
    }


def _router(path: str) -> Places:
    place = Place(f"{path}.weight", ("experts", "hidden"), plain=True)
    return {"ffn_gate_inp.weight": place}


_MLP_BIASES = {
    "ffn_gate.bias": Place("mlp.gate_proj.bias", ("ffn",), "mlp_bias"),
    "ffn_up.bias": Place("mlp.up_proj.bias", ("ffn",), "mlp_bias"),
    "ffn_down.bias": Place("mlp.down_proj.bias", ("hidden",), "mlp_bias"),
}
_LLAMA_LAYER = {
    **_NORMS,
    **_attention(rotated=True, biases="attention_bias"),
    **_OUTPUT_BIAS,
    **_MLP_BIASES,
}
_SANDWICH = {
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
_GEMMA_OUTSIDE = {
    "token_embd.weight": _OUTSIDE["token_embd.weight"],
    "output_norm.weight": Place("model.norm.weight", ("hidden",), plus_one=True),
}
_SHARED = _mlp("_shexp", "mlp.shared_experts", "shared")

_ROWS = (
    Architecture(
        name="llama",
        model_type="llama",
        model_class="LlamaForCausalLM",
        outside=_OUTSIDE,
        layer=_LLAMA_LAYER,
        mlp=_mlp(),
        settings=settings.llama,
    ),
    Architecture(
        name="qwen2",
        model_type="qwen2",
        model_class="Qwen2ForCausalLM",
        outside=_OUTSIDE,
        layer={**_NORMS, **_attention(biases="always")},
        mlp=_mlp(),
        head_size=False,
    ),
    Architecture(
        name="qwen3",
        model_type="qwen3",
        model_class="Qwen3ForCausalLM",
        outside=_OUTSIDE,
        layer={**_NORMS, **_attention(), **_HEAD_NORMS},
        mlp=_mlp(),
    ),
    Architecture(
        name="qwen2moe",
        model_type="qwen2_moe",
        model_class="Qwen2MoeForCausalLM",
        outside=_OUTSIDE,
        layer={**_NORMS, **_attention(biases="always")},
        experts={
            **_router("mlp.gate"),
            **_experts("mlp.switch_mlp"),
            **_mlp("_shexp", "mlp.shared_expert", "shared"),
            "ffn_gate_inp_shexp.weight": Place(
                "mlp.shared_expert_gate.weight", ("hidden",), row=True, plain=True
            ),
        },
        settings=settings.qwen2moe,
        scalings=(),
        head_size=False,
        tied=False,
    ),
    Architecture(
        name="qwen3moe",
        model_type="qwen3_moe",
        model_class="Qwen3MoeForCausalLM",
        outside=_OUTSIDE,
        layer={**_NORMS, **_attention(), **_HEAD_NORMS},
        experts={**_router("mlp.gate"), **_experts("mlp.switch_mlp")},
        settings=settings.qwen3moe,
        scalings=(),
    ),
    Architecture(
        name="gemma2",
        model_type="gemma2",
        model_class="Gemma2ForCausalLM",
        outside=_GEMMA_OUTSIDE,
        layer={**_SANDWICH, **_attention()},
        mlp=_mlp(),
        settings=settings.gemma2,
        scalings=(),
        window=True,
    ),
    Architecture(
        name="gemma3",
        model_type="gemma3_text",
        model_class="Gemma3ForCausalLM",
        outside={**_GEMMA_OUTSIDE, **_HEAD},
        layer={
            **_SANDWICH,
            **_attention(),
            **{n: replace(p, plus_one=True) for n, p in _HEAD_NORMS.items()},
        },
        mlp=_mlp(),
        settings=settings.gemma3,
        scalings=("linear",),
    ),
    Architecture(
        name="phi3",
        model_type="phi3",
        model_class="Phi3ForCausalLM",
        outside=_OUTSIDE,
        layer={
            **_NORMS,
            "attn_qkv.weight": Place("self_attn.qkv_proj.weight", ("qkv", "hidden")),
            "attn_output.weight": Place("self_attn.o_proj.weight", ("hidden", "q")),
        },
        mlp={
            "ffn_up.weight": Place("mlp.gate_up_proj.weight", ("two ffn", "hidden")),
            "ffn_down.weight": Place("mlp.down_proj.weight", ("hidden", "ffn")),
        },
        settings=settings.phi3,
        scalings=("longrope",),
        head_size=False,
        part_rotated=True,
        window=True,
    ),
    Architecture(
        name="granite",
        model_type="granite",
        model_class="GraniteForCausalLM",
        outside=_OUTSIDE,
        layer=_LLAMA_LAYER,
        mlp=_mlp(),
        settings=settings.granite,
        head_size=False,
    ),
    Architecture(
        name="olmo2",
        model_type="olmo2",
        model_class="Olmo2ForCausalLM",
        outside=_OUTSIDE,
        layer={
            **_attention(),
            "attn_q_norm.weight": Place("self_attn.q_norm.weight", ("q",)),
            "attn_k_norm.weight": Place("self_attn.k_norm.weight", ("kv",)),
            "post_attention_norm.weight": Place(
                "post_attention_layernorm.weight", ("hidden",)
            ),
            "post_ffw_norm.weight": Place(
                "post_feedforward_layernorm.weight", ("hidden",)
            ),
        },
        mlp=_mlp(),
    ),
    Architecture(
        name="smollm3",
        model_type="smollm3",
        model_class="SmolLM3ForCausalLM",
        outside=_OUTSIDE,
        layer=_LLAMA_LAYER,
        mlp=_mlp(),
        settings=settings.smollm3,
    ),
    Architecture(
        name="gpt-oss",
        model_type="gpt_oss",
        model_class="GptOssForCausalLM",
        outside=_OUTSIDE,
        layer={
            "attn_norm.weight": _NORMS["attn_norm.weight"],
            "post_attention_norm.weight": _NORMS["ffn_norm.weight"],
            **_attention(biases="always"),
            "attn_output.bias": Place("self_attn.o_proj.bias", ("hidden",)),
            "attn_sinks.weight": Place("self_attn.sinks", ("heads",)),
        },
        experts={
            **_router("mlp.router"),
            "ffn_gate_inp.bias": Place("mlp.router.bias", ("experts",)),
            **_experts("mlp.experts"),
            "ffn_gate_exps.bias": Place(
                "mlp.experts.gate_proj.bias", ("experts", "expert"), plain=True
            ),
            "ffn_up_exps.bias": Place(
                "mlp.experts.up_proj.bias", ("experts", "expert"), plain=True
            ),
            "ffn_down_exps.bias": Place(
                "mlp.experts.down_proj.bias", ("experts", "hidden"), plain=True
            ),
        },
        settings=settings.gpt_oss,
        scalings=("yarn",),
        tied=False,
    ),
    Architecture(
        name="deepseek2",
        model_type="deepseek_v2",
        model_class="DeepseekV2ForCausalLM",
        outside=_OUTSIDE,
        layer={
            **_NORMS,
            "attn_q.weight": Place("self_attn.q_proj.weight", ("q", "hidden"), "one q"),
            "attn_q_a.weight": Place(
                "self_attn.q_a_proj.weight", ("q rank", "hidden"), "latent q"
            ),
            "attn_q_a_norm.weight": Place(
                "self_attn.q_a_layernorm.weight", ("q rank",), "latent q"
            ),
            "attn_q_b.weight": Place(
                "self_attn.q_b_proj.weight", ("q", "q rank"), "latent q"
            ),
            "attn_kv_a_mqa.weight": Place(
                "self_attn.kv_a_proj_with_mqa.weight", ("kv and rope", "hidden")
            ),
            "attn_kv_a_norm.weight": Place(
                "self_attn.kv_a_layernorm.weight", ("kv rank",)
            ),
            "attn_kv_b.weight": Place(
                "self_attn.kv_b_proj.weight",
                ("keys and values", "kv rank"),
                "one kv",
            ),
            "attn_k_b.weight": Place(
                "self_attn.embed_q.weight", ("heads", "kv rank", "plain"), "split kv"
            ),
            "attn_v_b.weight": Place(
                "self_attn.unembed_out.weight",
                ("heads", "value", "kv rank"),
                "split kv",
            ),
            "attn_output.weight": Place(
                "self_attn.o_proj.weight", ("hidden", "values")
            ),
        },
        mlp=_mlp(),
        experts={
            **_router("mlp.gate"),
            "exp_probs_b.bias": Place(
                "mlp.gate.e_score_correction_bias", ("experts",), "correction"
            ),
            **_experts("mlp.switch_mlp"),
            **{n: replace(p, needs="shared experts") for n, p in _SHARED.items()},
        },
        settings=settings.deepseek2,
        scalings=("yarn",),
        part_rotated=True,
        tied=False,
    ),
)

ARCHITECTURES = {row.name: row for row in _ROWS}


def architecture_of(file: GGUF) -> Architecture:
    """Return the row of a file.

    Raises:
        ValueError: If the architecture has no row.
    """
    name = file.get("general.architecture", str)
    if name not in ARCHITECTURES:
        fail(f"the architecture must be {', '.join(ARCHITECTURES)} but is {name!r}.")
    return ARCHITECTURES[name]

"""The table of llama.cpp's architectures: a new architecture is a row.

Names of tensors are those of the package `gguf` (MODEL_TENSORS), paths those of the
classes in `mlx_lm.models`.
"""

from __future__ import annotations

from dataclasses import replace

from mlx_nibble.conversion import gguf_settings as settings
from mlx_nibble.conversion.gguf_architectures import Architecture, Place
from mlx_nibble.conversion.gguf_places import (
    GEMMA_OUTSIDE,
    HEAD,
    HEAD_NORMS,
    LLAMA_LAYER,
    NORMS,
    OUTSIDE,
    SANDWICH,
    SHARED,
    attention,
    experts,
    mlp,
    router,
)
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF

_ROWS = (
    Architecture(
        name="llama",
        model_type="llama",
        model_class="LlamaForCausalLM",
        outside=OUTSIDE,
        layer=LLAMA_LAYER,
        mlp=mlp(),
        settings=settings.llama,
    ),
    Architecture(
        name="qwen2",
        model_type="qwen2",
        model_class="Qwen2ForCausalLM",
        outside=OUTSIDE,
        layer={**NORMS, **attention(biases="always")},
        mlp=mlp(),
        head_size=False,
    ),
    Architecture(
        name="qwen3",
        model_type="qwen3",
        model_class="Qwen3ForCausalLM",
        outside=OUTSIDE,
        layer={**NORMS, **attention(), **HEAD_NORMS},
        mlp=mlp(),
    ),
    Architecture(
        name="qwen2moe",
        model_type="qwen2_moe",
        model_class="Qwen2MoeForCausalLM",
        outside=OUTSIDE,
        layer={**NORMS, **attention(biases="always")},
        experts={
            **router("mlp.gate"),
            **experts("mlp.switch_mlp"),
            **mlp("_shexp", "mlp.shared_expert", "shared"),
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
        outside=OUTSIDE,
        layer={**NORMS, **attention(), **HEAD_NORMS},
        experts={**router("mlp.gate"), **experts("mlp.switch_mlp")},
        settings=settings.qwen3moe,
        scalings=(),
    ),
    Architecture(
        name="gemma2",
        model_type="gemma2",
        model_class="Gemma2ForCausalLM",
        outside=GEMMA_OUTSIDE,
        layer={**SANDWICH, **attention()},
        mlp=mlp(),
        settings=settings.gemma2,
        scalings=(),
        window=True,
    ),
    Architecture(
        name="gemma3",
        model_type="gemma3_text",
        model_class="Gemma3ForCausalLM",
        outside={**GEMMA_OUTSIDE, **HEAD},
        layer={
            **SANDWICH,
            **attention(),
            **{n: replace(p, plus_one=True) for n, p in HEAD_NORMS.items()},
        },
        mlp=mlp(),
        settings=settings.gemma3,
        scalings=("linear",),
    ),
    Architecture(
        name="phi3",
        model_type="phi3",
        model_class="Phi3ForCausalLM",
        outside=OUTSIDE,
        layer={
            **NORMS,
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
        outside=OUTSIDE,
        layer=LLAMA_LAYER,
        mlp=mlp(),
        settings=settings.granite,
        head_size=False,
    ),
    Architecture(
        name="olmo2",
        model_type="olmo2",
        model_class="Olmo2ForCausalLM",
        outside=OUTSIDE,
        layer={
            **attention(),
            "attn_q_norm.weight": Place("self_attn.q_norm.weight", ("q",)),
            "attn_k_norm.weight": Place("self_attn.k_norm.weight", ("kv",)),
            "post_attention_norm.weight": Place(
                "post_attention_layernorm.weight", ("hidden",)
            ),
            "post_ffw_norm.weight": Place(
                "post_feedforward_layernorm.weight", ("hidden",)
            ),
        },
        mlp=mlp(),
    ),
    Architecture(
        name="smollm3",
        model_type="smollm3",
        model_class="SmolLM3ForCausalLM",
        outside=OUTSIDE,
        layer=LLAMA_LAYER,
        mlp=mlp(),
        settings=settings.smollm3,
    ),
    Architecture(
        name="gpt-oss",
        model_type="gpt_oss",
        model_class="GptOssForCausalLM",
        outside=OUTSIDE,
        layer={
            "attn_norm.weight": NORMS["attn_norm.weight"],
            "post_attention_norm.weight": NORMS["ffn_norm.weight"],
            **attention(biases="always"),
            "attn_output.bias": Place("self_attn.o_proj.bias", ("hidden",)),
            "attn_sinks.weight": Place("self_attn.sinks", ("heads",)),
        },
        experts={
            **router("mlp.router"),
            "ffn_gate_inp.bias": Place("mlp.router.bias", ("experts",)),
            **experts("mlp.experts"),
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
        outside=OUTSIDE,
        layer={
            **NORMS,
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
                plain="one kv, to divide",
            ),
            "attn_k_b.weight": Place(
                "self_attn.embed_q.weight",
                ("heads", "kv rank", "plain"),
                "split kv",
                plain="split kv, to join",
            ),
            "attn_v_b.weight": Place(
                "self_attn.unembed_out.weight",
                ("heads", "value", "kv rank"),
                "split kv",
                plain="split kv, to join",
            ),
            "attn_output.weight": Place(
                "self_attn.o_proj.weight", ("hidden", "values")
            ),
        },
        mlp=mlp(),
        experts={
            **router("mlp.gate"),
            "exp_probs_b.bias": Place(
                "mlp.gate.e_score_correction_bias", ("experts",), "correction"
            ),
            **experts("mlp.switch_mlp"),
            **{n: replace(p, needs="shared experts") for n, p in SHARED.items()},
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

"""The table of llama.cpp's architectures: a new architecture is a row.

A row says how a GGUF file names the tensors of a model and which modules of mlx-lm's
model they are. :mod:`mlx_nibble.conversion.gguf_config` reads the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF


@dataclass(frozen=True)
class Place:
    """The place of a tensor in mlx-lm's model.

    Attributes:
        path: Path of the module; within a layer, for a tensor of each layer.
        shape: Names of its sizes, see `sizes`.
        rotated_heads: Key of the configuration with the number of heads, if
            llama.cpp's converter reordered the rows for rotary embedding.
    """

    path: str
    shape: tuple[str, ...]
    rotated_heads: str | None = None


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp as a model of mlx-lm.

    Attributes:
        name: Value of ``general.architecture``, and prefix of the metadata's keys.
        model_type: ``model_type`` of config.json.
        model_class: Class that config.json names.
        outside: Tensors outside the layers, ``NAME.weight``. A file without
            ``output`` ties the head to the embedding.
        layer: Tensors of each layer, ``blk.N.NAME.weight``.
    """

    name: str
    model_type: str
    model_class: str
    outside: Mapping[str, Place]
    layer: Mapping[str, Place]


_LLAMA = Architecture(
    name="llama",
    model_type="llama",
    model_class="LlamaForCausalLM",
    outside={
        "token_embd": Place("model.embed_tokens", ("vocabulary", "hidden")),
        "output_norm": Place("model.norm", ("hidden",)),
        "output": Place("lm_head", ("vocabulary", "hidden")),
    },
    layer={
        "attn_norm": Place("input_layernorm", ("hidden",)),
        "attn_q": Place("self_attn.q_proj", ("q", "hidden"), "num_attention_heads"),
        "attn_k": Place("self_attn.k_proj", ("kv", "hidden"), "num_key_value_heads"),
        "attn_v": Place("self_attn.v_proj", ("kv", "hidden")),
        "attn_output": Place("self_attn.o_proj", ("hidden", "q")),
        "ffn_norm": Place("post_attention_layernorm", ("hidden",)),
        "ffn_gate": Place("mlp.gate_proj", ("ffn", "hidden")),
        "ffn_up": Place("mlp.up_proj", ("ffn", "hidden")),
        "ffn_down": Place("mlp.down_proj", ("hidden", "ffn")),
    },
)

ARCHITECTURES = {row.name: row for row in (_LLAMA,)}


def architecture_of(file: GGUF) -> Architecture:
    """Return the row of a file.

    Raises:
        ValueError: If the architecture has no row.
    """
    name = file.get("general.architecture", str)
    if name not in ARCHITECTURES:
        fail(f"the architecture must be {', '.join(ARCHITECTURES)} but is {name!r}.")
    return ARCHITECTURES[name]


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes that shapes of `Place` name, from a model's configuration."""
    return {
        "vocabulary": config["vocab_size"],
        "hidden": config["hidden_size"],
        "ffn": config["intermediate_size"],
        "q": config["num_attention_heads"] * config["head_dim"],
        "kv": config["num_key_value_heads"] * config["head_dim"],
    }

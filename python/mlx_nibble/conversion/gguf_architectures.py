"""A row of the table of architectures, and the sizes that rows name.

A row says how a GGUF file names the tensors of a model, and which parameters of
mlx-lm's model they are. :mod:`mlx_nibble.conversion.gguf_rows` is the table,
:mod:`mlx_nibble.conversion.gguf_config` reads the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_nibble.conversion.gguf_metadata import Metadata


@dataclass(frozen=True)
class Place:
    """The place of a tensor in mlx-lm's model.

    Attributes:
        path: Path of the parameter; within a layer, for a tensor of each layer.
        shape: Names of its sizes in the file, see `Model.sizes`.
        needs: Fact without which the model has no such tensor, see `Model.facts`.
        rotated: Size that is the number of heads, if llama.cpp's converter reordered
            the rows of each head for rotary embedding.
        plus_one: Whether llama.cpp's converter added 1.
        row: Whether mlx-lm's model has a matrix of one row for this vector.
        plain: Whether mlx-lm's model can have this matrix in full precision only, or
            the fact that says so.
    """

    path: str
    shape: tuple[str, ...]
    needs: str | None = None
    rotated: str | None = None
    plus_one: bool = False
    row: bool = False
    plain: bool | str = False


Places = Mapping[str, Place]
"""Name of a tensor in the file to its place."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp as a model of mlx-lm.

    Attributes:
        name: Value of ``general.architecture``, and prefix of the metadata's keys.
        model_type: ``model_type`` of config.json.
        model_class: Class that config.json names.
        outside: Tensors outside the layers.
        layer: Tensors of each layer, without ``blk.N.``.
        mlp: Tensors of layers without experts.
        experts: Tensors of layers with experts.
        settings: Function from the metadata and the keys that all models have to
            further keys, or other values, of config.json.
        scalings: Types of `rope_scaling` that mlx-lm's model computes.
        head_size: Whether mlx-lm's model takes a head size of any value.
        part_rotated: Whether mlx-lm's model can rotate a part of each head.
        tied: Whether mlx-lm's model can use the embedding as head.
        window: Whether a window of attention needs no check: see `require_known`.
    """

    name: str
    model_type: str
    model_class: str
    outside: Places
    layer: Places
    mlp: Places = field(default_factory=dict)
    experts: Places = field(default_factory=dict)
    settings: Callable[[Metadata, dict[str, Any]], dict[str, Any]] | None = None
    scalings: tuple[str, ...] = ("linear", "llama3", "longrope", "yarn")
    head_size: bool = True
    part_rotated: bool = False
    tied: bool = True
    window: bool = False


@dataclass(frozen=True)
class Model:
    """A file's model, in the terms of mlx-lm.

    Attributes:
        row: The row of its architecture.
        config: Contents of config.json, without quantization.
        sizes: Name in `Place.shape` to size.
        facts: Facts that `Place.needs` names.
    """

    row: Architecture
    config: dict[str, Any]
    sizes: Mapping[str, int]
    facts: frozenset[str]

    def layer(self, index: int) -> Places:
        """Return the tensors of a layer, with names and paths of the whole model."""
        dense = index < self.config.get("first_k_dense_replace", 0)
        has_experts = self.row.experts and not dense
        parts = {
            **self.row.layer,
            **(self.row.experts if has_experts else self.row.mlp),
        }
        return {f"blk.{index}.{name}": place for name, place in parts.items()}


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes that shapes of `Place` name, from a model's configuration."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head, ffn = config["head_dim"], config["intermediate_size"]
    found = {
        "vocabulary": config["vocab_size"],
        "hidden": config["hidden_size"],
        "ffn": ffn,
        "two ffn": 2 * ffn,
        "heads": heads,
        "groups": groups,
        "head": head,
        "q": heads * head,
        "kv": groups * head,
        "qkv": (heads + 2 * groups) * head,
        "experts": _first(
            config, "num_experts", "num_local_experts", "n_routed_experts"
        ),
        "expert": config.get("moe_intermediate_size", ffn),
        "shared": config.get("shared_expert_intermediate_size", 0),
    }
    if "kv_lora_rank" in config:
        found |= _latent_sizes(config)
    return found


def _latent_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of multi-head latent attention."""
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    plain, rotated = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    value = config["v_head_dim"]
    return {
        "q": heads * (plain + rotated),
        "q rank": config["q_lora_rank"] or 0,
        "kv rank": rank,
        "kv and rope": rank + rotated,
        "keys and values": heads * (plain + value),
        "plain": plain,
        "value": value,
        "values": heads * value,
        "shared": config["moe_intermediate_size"] * (config["n_shared_experts"] or 0),
    }


def _first(config: Mapping[str, Any], *keys: str) -> int:
    return next((config[key] for key in keys if config.get(key)), 0)

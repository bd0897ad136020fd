"""The metadata keys that are known, and which of their values mlx-lm's model computes.

A key that is neither used nor known to be without effect is refused. llama.cpp's
architectures get new keys, and each of them may change the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF

# Keys of an architecture that other modules use.
_USED = frozenset(
    (
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
    )
)
# Keys without effect: facts of the training, and hints that llama.cpp does not read.
_WITHOUT_EFFECT = frozenset(
    (
        "attention.layer_norm_epsilon",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "tensor_data_layout",
    )
)
# Keys of the tokenizer that other modules use, or that byte-level BPE does not read.
_TOKENIZER = frozenset(
    (
        "model",
        "pre",
        "tokens",
        "token_type",
        "scores",
        "merges",
        "add_bos_token",
        "add_eos_token",
        "escape_whitespaces",
    )
)
# Roles of tokens; only those of the second row are written to the tokenizer.
_ROLES = frozenset(
    (
        *("bos", "eos", "eot", "eom", "unknown", "padding"),
        *("separator", "seperator", "cls", "mask", "prefix", "suffix", "middle"),
        *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
    )
)


def require_known(file: GGUF, architecture: str, head_dim: int) -> None:
    """Refuse a file whose metadata may change the result in ways that are not known.

    Args:
        file: The file.
        architecture: Its architecture, which begins keys.
        head_dim: Size of a head.

    Raises:
        ValueError: If a key is not known, or has a value that is not supported.
    """
    neutral = _neutral(file, architecture, head_dim)
    for key, value in file.metadata.items():
        space, _, name = key.partition(".")
        if space == architecture and name not in _USED | _WITHOUT_EFFECT:
            _require(key, value, neutral.get(name))
        elif key.startswith("tokenizer.ggml."):
            name = key.removeprefix("tokenizer.ggml.")
            role = name.removesuffix("_token_id")
            if name not in _TOKENIZER and (role == name or role not in _ROLES):
                _require(key, value, _TOKENIZER_NEUTRAL.get(name))
        elif space in ("adapter", "clip", "control_vector", "xtransformers"):
            fail(f"a language model is required but metadata {key!r} is of another.")
    if (kind := file.get("general.type", str, "model")) != "model":
        fail(f"general.type must be 'model' but is {kind!r}.")


def rope_scaling(file: GGUF, architecture: str) -> dict[str, Any] | None:
    """Return mlx-lm's `rope_scaling`, as llama.cpp reads it.

    A factor without a type is linear. `rope.scale_linear` is the older name.

    Raises:
        ValueError: If the type is not supported, or the factor is no number.
    """
    kind = file.get(f"{architecture}.rope.scaling.type", str, "linear")
    older = file.get(f"{architecture}.rope.scale_linear", float, 0.0)
    factor = file.get(f"{architecture}.rope.scaling.factor", float, older)
    if kind not in ("none", "linear"):
        fail(f"rope scaling must be 'none' or 'linear' but is {kind!r}.")
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if not 0 < factor < float("inf"):
        fail(f"the factor of rope scaling must be positive but is {factor}.")
    return {"type": "linear", "rope_type": "linear", "factor": factor}


def _neutral(
    file: GGUF, architecture: str, head_dim: int
) -> Mapping[str, Callable[[Any], bool]]:
    """Return a test for each known key: whether its value changes nothing."""
    context = file.get(f"{architecture}.context_length", int, 0)
    vocabulary = len(file.get("tokenizer.ggml.tokens", list))
    off, one = _one_of(0, False), _one_of(0, 1)
    return {
        "vocab_size": _one_of(vocabulary),
        "attention.causal": _one_of(True),
        "attention.value_length": _one_of(head_dim),
        "attention.sliding_window": lambda v: v == 0 or _at_least(v, context),
        "attention.scale": lambda v: v == 0 or _near(v, head_dim**-0.5),
        "rope.scaling.attn_factor": one,
        "logit_scale": one,
        "residual_scale": one,
        "embedding_scale": one,
        **dict.fromkeys(
            (
                "attention.clamp_kqv",
                "attention.max_alibi_bias",
                "attention.logit_softcapping",
                "attn_logit_softcapping",
                "final_logit_softcapping",
                "expert_count",
                "expert_used_count",
                "expert_shared_count",
                "interleave_moe_layer_step",
                "nextn_predict_layers",
                "pooling_type",
                "rope.scaling.yarn_log_multiplier",
                "use_parallel_residual",
            ),
            off,
        ),
    }


# As of `_neutral`, for the tokenizer. A space is a matter of other kinds of tokenizers.
_TOKENIZER_NEUTRAL: Mapping[str, Callable[[Any], bool]] = dict.fromkeys(
    ("add_sep_token", "add_space_prefix", "remove_extra_whitespaces"),
    lambda value: value is False,
)


def _require(key: str, value: Any, neutral: Callable[[Any], bool] | None) -> None:
    if neutral is None:
        fail(
            f"metadata that are known are required but {key!r} is not, and may change "
            "the model: convert its original model instead."
        )
    if not neutral(value):
        shown = value if isinstance(value, int | float) else type(value).__name__
        fail(
            f"metadata {key!r} = {shown} would change the model, and is not supported: "
            "convert its original model instead."
        )


def _one_of(*values: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and value in values


def _at_least(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least > 0


def _near(value: Any, wanted: float) -> bool:
    # Stored in float32.
    return isinstance(value, float) and abs(value - wanted) <= 2**-23 * wanted

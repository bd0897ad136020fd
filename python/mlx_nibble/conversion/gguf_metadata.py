"""The metadata of one architecture: each key is used, known to be neutral, or refused.

llama.cpp's architectures get new keys, and each of them may change the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF

# Keys without effect: facts of the training, and hints that llama.cpp does not read.
_WITHOUT_EFFECT = frozenset(
    (
        "attention.layer_norm_epsilon",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "tensor_data_layout",
    )
)
# Keys of the tokenizer that other modules use, or that no supported kind reads.
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
# Roles of tokens; only those of the first row are written to the tokenizer.
_ROLES = frozenset(
    (
        *("bos", "eos", "eot", "eom", "unknown", "padding"),
        *("separator", "seperator", "cls", "mask", "prefix", "suffix", "middle"),
        *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
    )
)


class Metadata:
    """The metadata of one architecture, whose name begins each key.

    Attributes:
        file: The file.
        architecture: The architecture.
    """

    def __init__(self, file: GGUF, architecture: str):
        """Begin with no key used."""
        self.file, self.architecture = file, architecture
        self._used: set[str] = set()

    def has(self, key: str) -> bool:
        """Return whether there is a value."""
        return f"{self.architecture}.{key}" in self.file.metadata

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Return a value, which counts as used: see `GGUF.get`."""
        self._used.add(key)
        return self.file.get(f"{self.architecture}.{key}", kind, default)

    def size(self, key: str, default: int | None = None) -> int:
        """Return a size."""
        value = self.get(key, int, default)
        if not 0 < value < 2**31:
            name = f"{self.architecture}.{key}"
            fail(f"{name} must be from 1 to 2³¹ - 1 but is {value}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive finite number, the shortest decimal of its float32."""
        value = self.get(key, float, default)
        if not 0 < value < float("inf"):
            name = f"{self.architecture}.{key}"
            fail(f"{name} must be positive and finite but is {value}.")
        return float(str(np.float32(value)))

    def require_known(self, head_dim: int, window: bool) -> None:
        """Refuse a key that is not used, and may change the result.

        Args:
            head_dim: Size of a head.
            window: Whether the model of mlx-lm attends to a window, or llama.cpp's does
                not, so that its size is no matter.

        Raises:
            ValueError: If a key is not known, or has a value that is not supported.
        """
        neutral = {**_neutral(self.file, self.architecture, head_dim)}
        if window:
            neutral["attention.sliding_window"] = lambda value: True
        for key, value in self.file.metadata.items():
            space, _, name = key.partition(".")
            if space == self.architecture:
                if name not in self._used | _WITHOUT_EFFECT:
                    _require(key, value, neutral.get(name))
            elif key.startswith("tokenizer.ggml."):
                name = key.removeprefix("tokenizer.ggml.")
                role = name.removesuffix("_token_id")
                if name not in _TOKENIZER and (role == name or role not in _ROLES):
                    _require(key, value, _tokenizer_neutral(self.file).get(name))
            elif space in ("adapter", "clip", "control_vector", "xtransformers"):
                fail(
                    f"a language model is required but metadata {key!r} is of another."
                )
        if (kind := self.file.get("general.type", str, "model")) != "model":
            fail(f"general.type must be 'model' but is {kind!r}.")


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
        "rope.scaling.yarn_ext_factor": one,
        "rope.scaling.yarn_attn_factor": one,
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


def _tokenizer_neutral(file: GGUF) -> Mapping[str, Callable[[Any], bool]]:
    """Return such tests for the tokenizer's keys.

    Byte-level BPE adds no space. SentencePiece uses `add_space_prefix` itself.
    """
    unigram = file.get("tokenizer.ggml.model", str) == "llama"
    return {
        "add_sep_token": _one_of(False),
        "add_space_prefix": _one_of(False, unigram),
        "remove_extra_whitespaces": _one_of(False),
    }


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

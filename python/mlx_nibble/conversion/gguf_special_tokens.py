"""The special tokens of a GGUF file, and those that end a generation."""

from __future__ import annotations

from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF

# tokenizer.ggml.token_type, from llama.h.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
# Roles of tokens at which llama.cpp ends a generation: text, turn, message.
_END_ROLES = ("eos", "eot", "eom")
# The control tokens that llama.cpp takes for ends by their text (llama-vocab.cpp).
_END_TEXTS = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "<|end_of_text|>",
        "<end_of_utterance>",
    )
)


def token_id(file: GGUF, role: str) -> int | None:
    """Return the id of the token of a role, such as ``bos`` or ``eos``, if any.

    Raises:
        ValueError: If the vocabulary has no such token.
    """
    key = f"tokenizer.ggml.{role}_token_id"
    if key not in file.metadata:
        return None
    value = file.get(key, int)
    vocabulary = len(file.get("tokenizer.ggml.tokens", list))
    if not 0 <= value < vocabulary:
        fail(f"{key} must be below {vocabulary} but is {value}.")
    return value


def end_ids(file: GGUF) -> list[int]:
    """Return the ids of all tokens at which llama.cpp ends a generation, eos first."""
    tokens = file.get("tokenizer.ggml.tokens", list)
    stated = [token_id(file, role) for role in _END_ROLES]
    by_text = [
        index
        for index, kind in enumerate(token_types(file, len(tokens)))
        if kind == CONTROL and tokens[index] in _END_TEXTS
    ]
    return list(dict.fromkeys([i for i in stated if i is not None] + by_text))


def flag(file: GGUF, name: str, default: bool = False) -> bool:
    """Return a switch of the tokenizer."""
    return file.get(f"tokenizer.ggml.{name}", bool, default)


def token_types(file: GGUF, count: int) -> list[int]:
    """Return the type of each token.

    Raises:
        ValueError: If there are not `count` of them.
    """
    types = file.metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return [1] * count  # llama.cpp's default: a normal token
    if isinstance(types, list) or getattr(types, "shape", None) != (count,):
        fail(f"tokenizer.ggml.token_type must be {count} numbers but is not.")
    return types.tolist()

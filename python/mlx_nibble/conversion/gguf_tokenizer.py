"""A GGUF's vocabulary as the files of a Hugging Face tokenizer."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from mlx_nibble.conversion.gguf_pre_tokenizers import rule_named
from mlx_nibble.conversion.gguf_sentencepiece import sentencepiece
from mlx_nibble.conversion.gguf_special_tokens import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    flag,
    token_id,
    token_types,
)
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF

# The tokens of Phi 3 that do not take the spaces behind them (llama-vocab.cpp).
_KEEP_SPACES = ("<unk>", "<s>", "<|endoftext|>")


def build_tokenizer(file: GGUF) -> Tokenizer:
    """Return the tokenizer of a GGUF file, for ``tokenizer.json``.

    Raises:
        ValueError: If the vocabulary is of another kind, or inconsistent.
    """
    tokens = file.get("tokenizer.ggml.tokens", list)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        fail("tokenizer.ggml.tokens must not repeat a token but does.")
    if _is_sentencepiece(file):
        tokenizer = sentencepiece(file, vocabulary)
    else:
        tokenizer = _byte_level(file, vocabulary)
    typed = list(zip(tokens, token_types(file, len(tokens)), strict=True))
    strips = _is_sentencepiece(file) and file.metadata["general.architecture"] == "phi3"
    tokenizer.add_special_tokens(
        [
            AddedToken(
                token,
                special=True,
                normalized=False,
                rstrip=strips and token not in _KEEP_SPACES,
            )
            for token, kind in typed
            if kind in (UNKNOWN, CONTROL)
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in typed
            if kind == USER_DEFINED
        ]
    )
    _add_ends(tokenizer, file)
    return tokenizer


def tokenizer_config(file: GGUF, context: int) -> dict[str, Any]:
    """Return the ``tokenizer_config.json``.

    Args:
        file: The file; its chat template is included if there is one.
        context: Tokens of the longest input.
    """
    tokens = file.get("tokenizer.ggml.tokens", list)

    def token(role: str) -> str | None:
        index = token_id(file, role)
        return None if index is None else tokens[index]

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "add_prefix_space": False,
        "add_bos_token": _adds(file, "bos"),
        "add_eos_token": _adds(file, "eos"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    if "tokenizer.chat_template" in file.metadata:
        config["chat_template"] = file.get("tokenizer.chat_template", str)
    return config


def _is_sentencepiece(file: GGUF) -> bool:
    kind = file.get("tokenizer.ggml.model", str)
    if kind not in ("gpt2", "llama"):
        fail(
            "the tokenizer must be 'gpt2' (byte-level BPE) or 'llama' (SentencePiece) "
            f"but is {kind!r}."
        )
    return kind == "llama"


def _byte_level(file: GGUF, vocabulary: dict[str, int]) -> Tokenizer:
    """Return the tokenizer of byte-level BPE, without special tokens."""
    rule = rule_named(file.get("tokenizer.ggml.pre", str))
    merges = _merges(file)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, ignore_merges=rule.ignore_merges)
    )
    normalizer = rule.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = rule.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _adds(file: GGUF, role: str) -> bool:
    """Return whether a text gets a token at its begin (bos) or end (eos).

    SentencePiece and some rules of BPE begin a text unless the file says not.
    """
    default = False
    if role == "bos" and token_id(file, "bos") is not None:
        default = (
            _is_sentencepiece(file)
            or rule_named(file.get("tokenizer.ggml.pre", str)).add_bos
        )
    return flag(file, f"add_{role}_token", default)


def _add_ends(tokenizer: Tokenizer, file: GGUF) -> None:
    """Begin and end every text with the tokens that the file says."""
    tokens = file.get("tokenizer.ggml.tokens", list)
    ends = {}
    for role in ("bos", "eos"):
        if _adds(file, role):
            index = token_id(file, role)
            if index is None:
                fail(
                    f"add_{role}_token requires tokenizer.ggml.{role}_token_id but "
                    "there is none."
                )
            ends[role] = (tokens[index], index)
    if not ends:
        return
    before = [ends["bos"][0]] if "bos" in ends else []
    after = [ends["eos"][0]] if "eos" in ends else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", "$B", *after],
        special_tokens=list(dict.fromkeys(ends.values())),
    )


def _merges(file: GGUF) -> list[tuple[str, str]]:
    tokens = set(file.get("tokenizer.ggml.tokens", list))
    merges = []
    for rule in file.get("tokenizer.ggml.merges", list):
        left, _, right = rule.partition(" ")
        if left not in tokens or right not in tokens or left + right not in tokens:
            fail(f"merge {rule!r} must join two tokens into a third but does not.")
        merges.append((left, right))
    return merges

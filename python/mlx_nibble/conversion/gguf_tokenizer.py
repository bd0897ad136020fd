"""A GGUF's vocabulary as the files of a Hugging Face tokenizer.

A GGUF names the rule that splits text before byte-pair merges
(``tokenizer.ggml.pre``), but does not contain the rule. Each rule here is that of the
models with this name. Other names are refused: a nearly right tokenizer is a wrong one.
"""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)

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


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, _gpt2()])


_PRE_TOKENIZERS = {"gpt-2": _gpt2, "smollm": _smollm}


def build_tokenizer(file: GGUF) -> Tokenizer:
    """Return the byte-level BPE tokenizer of a GGUF file, for ``tokenizer.json``.

    Raises:
        ValueError: If the vocabulary is of another kind, or inconsistent.
    """
    kind = file.get("tokenizer.ggml.model", str)
    if kind != "gpt2":
        fail(f"the tokenizer must be 'gpt2' (byte-level BPE) but is {kind!r}.")
    pre = file.get("tokenizer.ggml.pre", str, "gpt-2")
    if pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        fail(f"the pre-tokenizer must be one of {known} but is {pre!r}.")
    tokens = file.get("tokenizer.ggml.tokens", list)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        fail("tokenizer.ggml.tokens must not repeat a token but does.")

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(file)))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    types = token_types(file, len(tokens))
    typed = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
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
        "add_bos_token": flag(file, "add_bos_token"),
        "add_eos_token": flag(file, "add_eos_token"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    if "tokenizer.chat_template" in file.metadata:
        config["chat_template"] = file.get("tokenizer.chat_template", str)
    return config


def _add_ends(tokenizer: Tokenizer, file: GGUF) -> None:
    """Begin and end every text with the tokens that the file says."""
    tokens = file.get("tokenizer.ggml.tokens", list)
    ends = {}
    for role in ("bos", "eos"):
        if flag(file, f"add_{role}_token"):
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

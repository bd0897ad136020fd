"""A GGUF's SentencePiece vocabulary (`llama`: pieces with scores) as a BPE tokenizer.

SentencePiece joins the two neighbours whose joint piece has the highest score.
Byte-pair encoding joins the pair of lowest rank. So each way to make a piece of two
becomes a merge, ranked by the score of the piece, as in transformers' conversion.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers

from mlx_nibble.conversion.gguf_special_tokens import UNKNOWN, flag, token_types
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF

_NORMAL = 1
_SPACE = "\u2581"
# The longest piece of Gemma has 93 characters. The ways to divide a piece grow with its
# length, and the time for each too.
_LONGEST = 512


def sentencepiece(file: GGUF, vocabulary: dict[str, int]) -> Tokenizer:
    """Return the tokenizer, without special tokens.

    Raises:
        ValueError: If scores are missing, or a piece is too long.
    """
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges(file, vocabulary),
        unk_token=_unknown(file),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = flag(file, "add_space_prefix", default=True)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    if prefix:
        spaces.insert(0, normalizers.Prepend(_SPACE))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        parts.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def _merges(file: GGUF, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    tokens = file.get("tokenizer.ggml.tokens", list)
    scores = file.get("tokenizer.ggml.scores", np.ndarray)
    if scores.shape != (len(tokens),) or not np.isfinite(scores).all():
        fail(f"tokenizer.ggml.scores must be {len(tokens)} numbers but are not.")
    ways = []
    for token, kind, score in zip(
        tokens, token_types(file, len(tokens)), scores.tolist(), strict=True
    ):
        if kind != _NORMAL or len(token) < 2:
            continue
        if len(token) > _LONGEST:
            fail(
                f"a piece must have {_LONGEST} characters at most but has {len(token)}."
            )
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary:
                ways.append((-score, vocabulary[left], vocabulary[right], left, right))
    ways.sort(key=lambda way: way[:3])
    return [(left, right) for *_, left, right in ways]


def _unknown(file: GGUF) -> str | None:
    """Return the piece that stands for characters without one."""
    tokens = file.get("tokenizer.ggml.tokens", list)
    kinds = token_types(file, len(tokens))
    return tokens[kinds.index(UNKNOWN)] if UNKNOWN in kinds else None

"""Text that a model writes itself, to calibrate on what it predicts.

Liu et al., LLM-QAT (2023), section 3.1: sequences that begin with a random token and
are then sampled from the model's own predictions. They need no file, and cover what the
model knows.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble import lm
from mlx_nibble.progress import Progress

# Sequences that are sampled at once: products of more rows are not faster, and their
# caches take at most this many bytes.
_TOGETHER, _CACHE_BYTES = 512, 4 << 30


def own_text(
    model: nn.Module,
    tokenizer: Any,
    samples: int,
    length: int,
    progress: Progress,
    seed: int = 0,
) -> np.ndarray:
    """Return sequences that a model samples from its own predictions.

    Args:
        model: A model of mlx-lm.
        tokenizer: Its tokenizer.
        samples: Number of sequences.
        length: Tokens of a sequence.
        progress: Function called for each token, of the tokens so far and of all.
        seed: Seed of the first tokens and of the samples.

    Returns:
        Token ids, int32 `[samples, length]`.
    """
    numbers = np.random.default_rng(seed)
    prefix = tokenizer.encode("")
    special = set(tokenizer.all_special_ids)
    usual = [i for i in range(len(tokenizer.get_vocab())) if i not in special]
    together = _together(model, length)
    parts = []
    for start in range(0, samples, together):
        count = min(together, samples - start)
        first = numbers.choice(usual, (count, 1))
        begun = np.concatenate([np.tile(prefix, (count, 1)), first], 1)[:, :length]
        keys = mx.random.split(mx.random.key(int(numbers.integers(2**63))), length)
        tokens = mx.array(begun.astype(np.int32))
        cache, written = lm.make_prompt_cache(model), [tokens]
        for i in range(begun.shape[1], length):
            logits = model(tokens, cache=cache)[:, -1].astype(mx.float32)
            sampled = mx.random.categorical(logits, key=keys[i])
            tokens = sampled.astype(mx.int32)[:, None]
            written.append(tokens)
            mx.async_eval(tokens)
            done = start * length + i * count
            progress("Writing text", done, samples * length)
        parts.append(np.array(mx.concatenate(written, 1)))
    return np.concatenate(parts)


def _together(model: nn.Module, length: int) -> int:
    """Return how many sequences to sample at once."""
    cache = lm.make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, length), mx.int32), cache=cache))
    nbytes = sum(part.nbytes for part in cache)
    return max(1, min(_TOGETHER, _CACHE_BYTES // nbytes))

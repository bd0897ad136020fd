"""Predictions of the original model, kept on disk: its likeliest tokens.

The divergence is that of the distributions over the likeliest tokens and one class of
all others: a lower bound of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.layerwise.cpu_math import fast_dense
from mlx_nibble.progress import Progress

# Tokens of each prediction. On SmolLM2 they have 0.95 to 1 of the probability.
_LIKELIEST = 128
# Log-probabilities of the others are bounded by that of this probability.
_LEAST = 1e-6


def make_targets(
    original: Callable[[], Callable[[mx.array], mx.array]],
    batches: Sequence[mx.array],
    workspace: Workspace,
    progress: Progress,
) -> None:
    """Compute the predictions that the workspace does not have.

    Args:
        original: Function that loads the original model.
        batches: Tokens `[B, L]`.
        workspace: The folder to keep them in.
        progress: Function called for each batch.
    """
    missing = [i for i in range(len(batches)) if not workspace.has_part(_name(i))]
    if not missing:
        return
    model = original()
    with fast_dense():
        for i in missing:
            progress("Reading the original's predictions", i, len(batches))
            workspace.save_part(_name(i), _likeliest(model(batches[i])))
    progress("Reading the original's predictions", len(batches), len(batches))


def loss_of(
    model: Callable[[mx.array], mx.array],
    batch: mx.array,
    workspace: Workspace,
    index: int,
) -> mx.array:
    """Return the mean divergence of a model from the original, in nats a token.

    Args:
        model: Function of tokens that returns logits.
        batch: Tokens `[B, L]`.
        workspace: The folder with the original's predictions.
        index: The number of the batch.
    """
    kept = workspace.load_part(_name(index))
    log_p = kept["log_p"].astype(mx.float32)
    return divergence(model(batch), log_p, kept["tokens"]).mean()


def divergence(logits: mx.array, log_p: mx.array, tokens: mx.array) -> mx.array:
    """Return KL(original || model) of each token, in nats `[B, L]`."""
    logits = logits.astype(mx.float32)
    whole = mx.logsumexp(logits, axis=-1, keepdims=True)
    log_q = mx.take_along_axis(logits, tokens, axis=-1) - whole
    p = mx.exp(log_p)
    rest_p = mx.maximum(1 - p.sum(-1), _LEAST)
    rest_q = mx.maximum(1 - mx.exp(log_q).sum(-1), _LEAST)
    inside = (p * (log_p - log_q)).sum(-1)
    return inside + rest_p * (mx.log(rest_p) - mx.log(rest_q))


def _likeliest(logits: mx.array) -> dict[str, mx.array]:
    logits = logits.astype(mx.float32)
    count = min(_LIKELIEST, logits.shape[-1])
    tokens = mx.argpartition(logits, kth=-count, axis=-1)[..., -count:]
    log_p = mx.take_along_axis(logits, tokens, axis=-1)
    log_p = log_p - mx.logsumexp(logits, axis=-1, keepdims=True)
    return {"log_p": log_p.astype(mx.float16), "tokens": tokens.astype(mx.uint32)}


def _name(index: int) -> str:
    return f"targets-{index:05}"

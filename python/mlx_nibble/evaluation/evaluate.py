"""Perplexity of a model, and its divergence from a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_nibble.layerwise.cpu_math import fast_dense, to_numpy
from mlx_nibble.progress import Progress, silent


@dataclass(frozen=True)
class TokenMean:
    """A mean over tokens, and its standard error."""

    mean: float
    error: float

    @staticmethod
    def of(samples: np.ndarray) -> TokenMean:
        """Estimate from independent samples, which neighbouring tokens nearly are."""
        if len(samples) < 2:
            return TokenMean(float(samples.mean()), float("nan"))
        spread = float(samples.std(ddof=1))
        return TokenMean(float(samples.mean()), spread / len(samples) ** 0.5)


@dataclass(frozen=True)
class Comparison:
    r"""A model against its reference on the same tokens.

    Attributes:
        increase: Relative increase of the perplexity,
            :math:`e^{\overline{\Delta}} - 1` with the difference of log-likelihoods
            paired token by token.
        kl: :math:`\mathrm{KL}(p_\mathrm{ref} \| p)` a token, in nats.
        agreement: Share of tokens for which both predict the same likeliest token.
    """

    increase: TokenMean
    kl: TokenMean
    agreement: TokenMean


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        tokens: Number of predicted tokens.
        perplexity: `exp` of the mean negative log-likelihood.
        reference_perplexity: Perplexity of the reference, if there is one.
        comparison: Comparison with the reference, if there is one.
    """

    tokens: int
    perplexity: TokenMean
    reference_perplexity: TokenMean | None = None
    comparison: Comparison | None = None


def evaluate(
    model: Callable[[mx.array], mx.array],
    batches: Sequence[mx.array],
    reference: Callable[[mx.array], mx.array] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Predict each token of each sequence from those before it.

    Args:
        model: Function from tokens `[B, L]` to logits `[B, L, V]`.
        batches: Tokens `[B, L]`, L above 1.
        reference: Function like `model`, to compare with.
        progress: Function of the step, batches done and all batches.

    Raises:
        ValueError: If there are no batches.
    """
    collected: list[dict[str, np.ndarray]] = []
    with fast_dense():
        for i, tokens in enumerate(batches):
            log_p = log_softmax(model(tokens))
            log_r = None if reference is None else log_softmax(reference(tokens))
            collected.append(_per_token(log_p, log_r, np.array(tokens)[:, 1:]))
            progress("Evaluating", i + 1, len(batches))
    if not collected:
        raise ValueError("[eval] a batch of tokens is required but got none.")
    samples = {k: np.concatenate([c[k] for c in collected]) for k in collected[0]}
    loss = samples["loss"]
    if reference is None:
        return Evaluation(len(loss), _exponential(loss))
    change = samples["loss"] - samples["reference"]
    growth = _exponential(change)
    return Evaluation(
        len(loss),
        _exponential(loss),
        _exponential(samples["reference"]),
        Comparison(
            TokenMean(growth.mean - 1, growth.error),
            TokenMean.of(samples["kl"]),
            TokenMean.of(samples["agree"]),
        ),
    )


def _exponential(samples: np.ndarray) -> TokenMean:
    """Return exp of the mean; its error is exact to first order."""
    log = TokenMean.of(samples)
    mean = float(np.exp(log.mean))
    return TokenMean(mean, mean * log.error)


def log_softmax(logits: mx.array) -> np.ndarray:
    """Return log-probabilities of all but the last position, float32 `[B, L-1, V]`."""
    x = to_numpy(logits[:, :-1])
    x = x - x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def kl_divergence(log_r: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """Return KL(r || p) of each token, in nats, `[B * (L - 1)]`."""
    kl = np.einsum("blv,blv->bl", np.exp(log_r), log_r - log_p)
    # Rounding alone can make it negative.
    return np.maximum(kl, 0).ravel().astype(float)


def _per_token(
    log_p: np.ndarray, log_r: np.ndarray | None, targets: np.ndarray
) -> dict[str, np.ndarray]:
    def picked(log: np.ndarray) -> np.ndarray:
        return np.take_along_axis(log, targets[..., None], -1).ravel().astype(float)

    result = {"loss": -picked(log_p)}
    if log_r is not None:
        result["reference"] = -picked(log_r)
        result["kl"] = kl_divergence(log_r, log_p)
        result["agree"] = (log_p.argmax(-1) == log_r.argmax(-1)).ravel().astype(float)
    return result

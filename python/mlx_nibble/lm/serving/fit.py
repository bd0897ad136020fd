"""The capacity of a model: its vocabulary, its context, and the memory for it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlx_nibble.lm.serving.memory import machine_bytes
from mlx_nibble.lm.serving.refusal import Refusal

# Tokens after which the bytes of a cache are counted. MLX's caches grow in steps of
# 256 tokens.
_PROBE = 256


@dataclass(frozen=True)
class Capacity:
    """The limits of a model on this machine.

    Attributes:
        vocabulary: Number of its logits.
        context: Number of positions; None if the model does not say.
        bytes_per_token: Size of its KV cache for each token.
        memory: Bytes that one sequence may take.
    """

    vocabulary: int
    context: int | None
    bytes_per_token: float
    memory: int

    @classmethod
    def of(cls, model: Any) -> Capacity:
        """Return the capacity of a model, which computes nothing for it."""
        args = getattr(model, "args", None)
        context = getattr(args, "max_position_embeddings", None)
        # Half, for weights and other sequences need memory too.
        memory = machine_bytes() // 2
        try:
            cache = make_prompt_cache(model)
            # Never evaluated: only shapes are needed.
            logits = model(mx.zeros((1, _PROBE), mx.int32), cache=cache)
            size = sum(getattr(c, "nbytes", 0) for c in cache)
        except Exception as error:
            logging.warning("The size of the KV cache is unknown: %s", error)
            return cls(getattr(args, "vocab_size", 2**31), context, 0.0, memory)
        return cls(logits.shape[-1], context, size / _PROBE, memory)

    def fit(self, prompt: list[int], args: Any) -> None:
        """Check a tokenized request, and bring its arguments into the model's range.

        Args:
            prompt: Token ids.
            args: mlx-lm's ``GenerationArguments``; some are lowered.

        Raises:
            Refusal: If the model cannot take the request.
        """
        if not prompt:
            raise Refusal(400, "prompt: must have at least one token", "prompt")
        if min(prompt) < 0 or max(prompt) >= self.vocabulary:
            raise Refusal(400, "prompt: has a token that the model does not know")
        most = int(self.memory / max(self.bytes_per_token, 1))
        limit = min(most, self.context or most)
        if len(prompt) >= limit:
            raise Refusal(
                400,
                f"the prompt has {len(prompt)} tokens, and {limit} is the limit for "
                "prompt and answer",
                code="context_length_exceeded",
            )
        args.max_tokens = min(args.max_tokens, limit - len(prompt))
        if args.sampling.top_k >= self.vocabulary:
            args.sampling.top_k = 0  # all tokens
        args.top_logprobs = min(args.top_logprobs, self.vocabulary)
        for token in args.logits.logit_bias or ():
            if token >= self.vocabulary:
                raise Refusal(
                    400,
                    f"logit_bias: token {token} is not in the model's vocabulary of "
                    f"{self.vocabulary}",
                    "logit_bias",
                )

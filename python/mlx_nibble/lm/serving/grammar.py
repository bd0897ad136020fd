"""Answers that must be JSON: a mask over the tokens at each step, by llguidance."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.lm.serving.refusal import Refusal

# Ten times the longest schema that we know.
_LONGEST = 100_000
_FIELD = "response_format"


def grammar_of(schema: dict[str, Any]) -> str:
    """Return the grammar of a JSON schema.

    Raises:
        Refusal: If the schema is none, or uses what is not supported.
    """
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise Refusal(
            400, f"{_FIELD}: the server requires the package llguidance", _FIELD
        ) from None
    text = json.dumps(schema)
    if len(text) > _LONGEST:
        raise Refusal(400, f"{_FIELD}: a schema has {_LONGEST} bytes at most", _FIELD)
    try:
        grammar = LLMatcher.grammar_from_json_schema(text)
        fault, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    except BaseException as error:  # a panic of the package is no Exception
        if not _is_of_package(error):
            raise
        fault, messages, grammar = True, [str(error)], ""
    if fault:
        raise Refusal(400, f"{_FIELD}: {' '.join(messages)}", _FIELD)
    return grammar


class Grammars:
    """Makes the masks of one model's tokenizer."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """Read the tokenizer, which takes a second.

        Raises:
            ValueError: If it is not one of the tokenizers package.
        """
        from llguidance.hf import from_tokenizer

        self.tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = sorted(tokenizer.eos_token_ids)
        self._known = from_tokenizer(tokenizer._tokenizer, vocabulary, self._ends)

    def processor(self, grammar: str, start: int) -> Constraint:
        """Return the processor of logits for one answer.

        Args:
            grammar: From :func:`grammar_of`.
            start: Number of the prompt's tokens.
        """
        from llguidance import LLMatcher

        def make() -> Any:
            return LLMatcher(self._known, grammar, log_level=0)

        return Constraint(make, start, self._vocabulary, self._ends)


class Constraint:
    """Lets only such tokens follow as the grammar allows."""

    def __init__(
        self, make: Callable[[], Any], start: int, vocabulary: int, ends: list[int]
    ) -> None:
        """Begin before the first token of the answer.

        Args:
            make: Function that makes a matcher of llguidance. After an error, one is
                of no use.
            start: Number of the prompt's tokens.
            vocabulary: Number of logits.
            ends: Tokens that end a text.
        """
        self._make, self._start = make, start
        self._matcher: Any = None
        self._consumed: list[int] = []
        ended = np.zeros(vocabulary, bool)
        ended[ends] = True
        self._ended = ended

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Return the logits, minus infinity where no token may follow.

        Args:
            tokens: The whole text so far.
            logits: Logits of the next token.
        """
        answer: Any = tokens[self._start :].tolist()
        allowed = mx.array(self._allowed(answer))
        return mx.where(allowed, logits, mx.array(-mx.inf, logits.dtype))

    def _allowed(self, answer: list[int]) -> np.ndarray:
        known = len(self._consumed)
        try:
            # Another text: tokens of a draft were refused.
            if self._matcher is None or answer[:known] != self._consumed:
                self._matcher, known = self._make(), 0
            self._matcher.consume_tokens(answer[known:])
            self._consumed = answer
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            if self._matcher.is_error():
                raise ValueError(self._matcher.get_error())
        except BaseException as error:
            if not _is_of_package(error):
                raise
            self._matcher = None
            first = str(error).partition("\n")[0]
            logging.warning("An answer in JSON ends early: %s", first)
            return self._ended
        bits = np.unpackbits(mask, bitorder="little", count=len(self._ended))
        return bits.astype(bool)


def _is_of_package(error: BaseException) -> bool:
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"

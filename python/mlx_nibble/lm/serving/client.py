"""The engine, as mlx-lm's handler of a request knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_nibble.lm.serving.engine import Engine
from mlx_nibble.lm.serving.models import DEFAULT_MODEL, names_of


class Failed(BaseException):
    """Carries an error past mlx-lm's handler, which answers each with status 404."""

    def __init__(self, error: Exception) -> None:
        """Carry an error."""
        self.error = error


class Client:
    """The engine, as mlx-lm's handler uses it, for one client."""

    def __init__(self, engine: Engine, look: Callable[[], None]) -> None:
        """Let ``look`` raise if the engine should drop the request."""
        self._engine, self._look = engine, look
        self.cli_args = engine.cli_args
        self.grammar: str | None = None

    def generate(
        self, request: Any, args: Any, progress_callback: Any = None
    ) -> tuple[Any, Any]:
        """Return the context of an answer, and its tokens as they come.

        Raises:
            Failed: If there is no answer.
        """
        # By one name: by another, mlx-lm would load the same model again.
        if args.model.model in names_of(self.cli_args.model):
            args.model.model = DEFAULT_MODEL
        if args.model.draft in names_of(self.cli_args.draft_model):
            args.model.draft = DEFAULT_MODEL
        args.grammar = self.grammar
        try:
            return self._engine.generate(request, args, progress_callback, self._look)
        except Exception as error:
            raise Failed(error) from error

"""The option ``--trust-remote-code`` of every command that loads a model."""

from __future__ import annotations

import argparse

_HELP = (
    "run the Python code of the model's folder, which then has all your rights: of its "
    "tokenizer, and of a model that mlx-lm does not know"
)


def add_option(
    parser: argparse.ArgumentParser, unless_given: bool | None = False
) -> None:
    """Add ``--trust-remote-code``, with mlx-lm's meaning.

    Args:
        parser: Parser of a command.
        unless_given: The value without the option.
    """
    parser.add_argument(
        "--trust-remote-code",
        action="store_const",
        const=True,
        default=unless_given,
        help=_HELP,
    )

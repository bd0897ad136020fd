"""Run any command of mlx-lm with every model accelerated.

nibble run COMMAND is mlx_lm.COMMAND: lora, fuse, perplexity, evaluate, benchmark and
all others of the installed mlx-lm. Its models run on our kernels, and are saved in the
types that they were loaded in. The commands chat, convert, generate and server are
nibble's own: nibble chat, convert, generate and serve.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType
from typing import Any

from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.delegate import add_own_options, run_accelerated

_PREFIX = "mlx_lm."
# Commands of mlx-lm that nibble has itself, with further options.
_OWN = {"chat": "chat", "convert": "convert", "generate": "generate", "server": "serve"}


def commands() -> dict[str, str]:
    """Return the commands of the installed mlx-lm, and the module of each."""
    try:
        found = distribution("mlx-lm")
    except PackageNotFoundError:
        raise ModuleNotFoundError(name="mlx_lm") from None
    return {
        entry.name.removeprefix(_PREFIX): entry.module.removeprefix(_PREFIX)
        for entry in found.entry_points
        if entry.group == "console_scripts" and entry.name.startswith(_PREFIX)
    }


def main(arguments: Sequence[str]) -> None:
    """Run the command of mlx-lm that the first argument names."""
    known = commands()
    parser = command_parser("run")
    parser.add_argument(
        "command", metavar="COMMAND", choices=sorted(known), help=", ".join(known)
    )
    add_own_options(parser)
    # The options that follow are those of the command.
    name = parser.parse_args(arguments[:1]).command
    if name in _OWN:
        import_module(f"{__package__}.{_OWN[name]}").main(arguments[1:])
        return
    try:
        run_accelerated(known[name], f"run {name}", arguments[1:], within=_with_consent)
    except ModuleNotFoundError as error:  # such as lm_eval, which mlx-lm leaves out
        raise ValueError(
            f"[run {name}] the package {error.name} is required: run pip install "
            f"{error.name}"
        ) from error


@contextmanager
def _with_consent(options: argparse.Namespace, module: ModuleType) -> Iterator[None]:
    """Let a tokenizer's Python code run only if the command line says so.

    ``mlx_lm.benchmark`` always runs it.
    """
    load = getattr(module, "load", None)
    if load is None or "--trust-remote-code" in sys.argv:
        yield
        return

    def without_code(*args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("tokenizer_config") or {}
        kwargs["tokenizer_config"] = {**config, "trust_remote_code": False}
        return load(*args, **kwargs)

    from mlx_nibble.lm.replaced import replaced

    with replaced(module, "load", without_code):
        yield

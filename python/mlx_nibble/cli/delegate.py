"""Runs mlx-lm's own commands on accelerated models."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType

from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.cli import activations, threads, verbose
from mlx_nibble.cli.hub import hub_errors
from mlx_nibble.cli.models import gguf_imported, require_model

_BATCH_INVARIANT = (
    "compute each row independently of the number of rows: on a CPU, greedy decoding "
    "with --draft-model then gives exactly the tokens that it gives without "
    "(docs/reference/numerics.md states the cost)"
)
_REPACK = (
    "on a CPU, put the weights in the order that the processor reads fastest, in place "
    "of the checkpoint's: decoding is faster, and the tokens stay the same "
    "(docs/internals/cpu.md; default: yes)"
)


# Commands of mlx-lm that only generate. Their activations are float32 on a CPU, and
# products of 16-bit integers are twice as fast (docs/results/cpu.md).
_GENERATING = ("generate", "chat", "server")


def add_own_options(parser: argparse.ArgumentParser, name: str = "") -> None:
    """Add the options of ours that each of mlx-lm's commands has here.

    Args:
        parser: Parser of our options.
        name: Module of the command in mlx-lm.
    """
    activations.add_option(parser, "int16" if name in _GENERATING else "exact")
    parser.add_argument("--batch-invariant", action="store_true", help=_BATCH_INVARIANT)
    parser.add_argument(
        "--repack", action=argparse.BooleanOptionalAction, default=True, help=_REPACK
    )
    threads.add_option(parser)
    verbose.add_option(parser)


def run_accelerated(
    name: str,
    command: str,
    arguments: Sequence[str],
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    within: Callable[
        [argparse.Namespace, ModuleType], AbstractContextManager
    ] = lambda ours, module: nullcontext(),
) -> None:
    """Run an mlx-lm command.

    Args:
        name: Module of the command in mlx-lm.
        command: Our name for it, as in ``nibble COMMAND``.
        arguments: Command line: mlx-lm's options, and ours. A first argument that is no
            option is the model.
        add_options: Adds further options of ours.
        within: Function of our options and of mlx-lm's module; the command runs in its
            context.

    Raises:
        ValueError: If ``--model`` is a path that does not exist.
        OSError: If the Hub does not give us the model of that name.
    """
    parser = argparse.ArgumentParser(
        prog=f"nibble {command}", add_help=False, allow_abbrev=False
    )
    add_own_options(parser, name)
    add_options(parser)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    ours, arguments = parser.parse_known_args(arguments)
    threads.require(ours)
    arguments = [*arguments, *verbose.upstream_arguments(ours)]
    for option in ("--model", "--draft-model"):
        if path := _value(command, option, arguments):
            if folder := gguf_imported(path):
                arguments += [option, folder]  # the last one counts
            else:
                require_model(command, option, path)
    adapter = _value(command, "--adapter-path", arguments)
    reads = name != "lora"  # which makes it
    if reads and adapter and not Path(adapter).expanduser().exists():
        raise ValueError(f"[{command}] --adapter-path {adapter!r} does not exist.")
    try:
        from mlx_nibble.lm import run_command  # mlx-lm takes a second to import

        with hub_errors(command):
            run_command(
                name,
                f"nibble {command}",
                arguments,
                Settings(activations.setting(ours), ours.batch_invariant, ours.repack),
                partial(within, ours),
                verbose.Reporter(ours),
            )
    except SystemExit as end:
        if end.code in (0, None) and not {"-h", "--help"}.isdisjoint(arguments):
            print("\nand, of nibble's own:\n" + parser.format_help().split("\n\n")[1])
        raise


def _value(command: str, option: str, arguments: Sequence[str]) -> str | None:
    parser = argparse.ArgumentParser(
        prog=f"nibble {command}", add_help=False, allow_abbrev=False
    )
    parser.add_argument(option, dest="path")
    return parser.parse_known_args(arguments)[0].path

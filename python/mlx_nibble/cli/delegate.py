"""Sub-commands that are mlx-lm's own, on accelerated models."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from mlx_nibble.cli import activations
from mlx_nibble.lm import run_command

_BATCH_INVARIANT = (
    "have no row's result depend on how many rows there are: on a CPU, greedy "
    "decoding with --draft-model then gives exactly the tokens that it gives without "
    "(docs/numerics.md says what it costs)"
)
_REPACK = (
    "on a CPU, keep a second copy of the weights in the order that the processor reads "
    "fastest: decoding is faster, the same tokens come out, and the weights take twice "
    "the memory (docs/cpu.md)"
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def run_accelerated(name: str, command: str, arguments: Sequence[str]) -> None:
    """Run an mlx-lm command.

    Args:
        name: Its module in mlx-lm.
        command: Ours: ``nibble COMMAND``.
        arguments: Its command line, to which we add ``--activations``,
            ``--batch-invariant`` and ``--repack``.

    Raises:
        ValueError: If ``--model`` is a path that does not exist.
        OSError: If it is a name that the Hub does not give us the model of.
    """
    parser = argparse.ArgumentParser(
        prog=f"nibble {command}", add_help=False, allow_abbrev=False
    )
    activations.add_option(parser)
    parser.add_argument("--batch-invariant", action="store_true", help=_BATCH_INVARIANT)
    parser.add_argument("--repack", action="store_true", help=_REPACK)
    ours, arguments = parser.parse_known_args(arguments)
    for option in ("--model", "--draft-model", "--adapter-path"):
        _require_exists(option, command, arguments)
    try:
        run_command(
            name,
            f"nibble {command}",
            arguments,
            activations.setting(ours),
            ours.batch_invariant,
            ours.repack,
        )
    except SystemExit as end:
        if end.code in (0, None) and not {"-h", "--help"}.isdisjoint(arguments):
            print("\nand, of nibble's own:\n" + parser.format_help().split("\n\n")[1])
        raise
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"[{command}] the model is not a folder here, and could not be had from "
            f"the Hugging Face Hub: {reason}"
        ) from error


def _require_exists(option: str, command: str, arguments: Sequence[str]) -> None:
    """Say so of a missing folder, before it is looked for on the Hub."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="path")
    path = parser.parse_known_args(arguments)[0].path
    if path is None or Path(path).expanduser().exists():
        return
    if path.startswith(".") or not _HUB_NAME.fullmatch(path):
        raise ValueError(f"[{command}] {option} {path!r} does not exist.")

"""The ``nibble`` command: the list of commands, and the form of their errors."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from mlx_nibble import _native
from mlx_nibble.cli.commands import Commands
from mlx_nibble.cli.printable import never_fail_to_print, printable

COMMANDS = Commands(
    program="nibble",
    noun="command",
    prefix="",
    names=(
        "demo",
        "convert",
        "distill",
        "eval",
        "generate",
        "chat",
        "inspect",
        "serve",
        "run",
        "doctor",
        "bench",
        "tune",
    ),
    about="Low-bit language models on MLX, faster.",
    more="  nibble --version      shows the version",
)

# An error that names its operation, unlike an OSError's "[Errno 2] ...".
_NAMED = re.compile(r"\[[a-z]")
# Six lines of a terminal: longer than all our messages and those of the Hub.
_LONGEST_MESSAGE = 480
_EXTRA = (
    "mlx_lm",
    "rich",
    "threadpoolctl",
    "tokenizers",
    "transformers",
    "huggingface_hub",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Command line. Default: that of the process.

    Returns:
        The exit status: 0, 1 for an error, 2 for a wrong command line, 130 for
        Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    never_fail_to_print()
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, has enough. Without a new stdout, Python would
        # fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-V", "--version", "version"):
        from mlx_nibble import __version__

        print(f"nibble {__version__}")
        return 0
    chosen = COMMANDS.choose(arguments)
    return chosen if isinstance(chosen, int) else _run(chosen, arguments[1:])


def _run(command: str, arguments: Sequence[str]) -> int:
    # A killed command removes its half-written files, too. One of several ranks gets no
    # handler: it waits for its peers where Python calls none. mlx.launch, which ends
    # the others when one has died, waits for it.
    if "MLX_RANK" not in os.environ:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        module = COMMANDS.load(command)
        if _native.reason is not None:
            _say_inactive()
        module.main(arguments)
    except _Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        # Everything is cleaned up: another Ctrl-C need not wait for Python's own end.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("nibble: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        return complain(
            command,
            f"the package {error.name} is required: run pip install 'mlx-nibble[lm]'",
        )
    except (ValueError, OSError, RuntimeError) as error:
        return complain(command, str(error) or type(error).__name__)
    except Exception as error:
        # A fault of ours, or of a package on a file that no check foresaw.
        if sys.flags.dev_mode:
            raise
        return complain(
            command,
            f"an error that was not expected, {type(error).__name__}: {error}; "
            "PYTHONDEVMODE=1 shows where",
        )
    return 0


def complain(command: str, message: str) -> int:
    """Print an error as one line that names its operation; return the exit status."""
    # A message of several lines lists missing parameters, perhaps all of a model.
    message = textwrap.shorten(message, _LONGEST_MESSAGE, placeholder=" ...")
    named = message if _NAMED.match(message) else f"[{command}] {message}"
    named = printable(named)
    print(f"nibble: {named}", file=sys.stderr)
    return 1


def _say_inactive() -> None:
    from mlx_nibble.cli.console import err

    err.print(
        f"mlx-nibble is inactive, every operation is MLX's own: {_native.reason}",
        style="bold red",
        soft_wrap=True,
    )


class _Terminated(KeyboardInterrupt):
    """SIGTERM, for all code that cleans up after Ctrl-C, such as mlx-lm's server."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated

"""The ``nibble`` command: which sub-commands there are, and how errors look."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import textwrap
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

_COMMANDS = {
    "demo": "fetch a small model, answer a question, and compare with stock MLX",
    "convert": "import a GGUF file without loss, or quantize a model",
    "eval": "perplexity of a model, and its distance from a reference",
    "generate": "complete a prompt (mlx_lm.generate, accelerated)",
    "chat": "talk to a model (mlx_lm.chat, accelerated)",
    "inspect": "the bytes a model takes, as it is and in other formats",
    "serve": "answer OpenAI-style requests over HTTP (mlx_lm.server, accelerated)",
    "doctor": "try every kernel on this machine",
    "bench": "measure products, and compare runs",
    "tune": "find the fastest kernels for this machine, and keep them",
}

# An error that names its operation, unlike an OSError's "[Errno 2] ...".
_NAMED = re.compile(r"\[[a-z]")
# Six lines of a terminal: longer than any of ours, and than what the Hub says.
_LONGEST_MESSAGE = 480
_EXTRA = ("mlx_lm", "rich", "tokenizers", "transformers", "huggingface_hub")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        arguments: Default: those of the process.

    Returns:
        The exit status: 0, 1 for an error, 2 for a wrong command line, 130 for
        Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, has enough. Python would complain once more
        # when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        from mlx_nibble import __version__

        print(f"nibble {__version__}")
        return 0
    command = arguments[0]
    if command not in _COMMANDS:
        print(f"nibble: there is no command {command!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    return _run(command, arguments[1:])


def _usage() -> str:
    rows = [f"  {name:<10}{what}" for name, what in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: nibble COMMAND [OPTIONS]",
            "",
            "Low-bit language models on MLX, faster.",
            "",
            *rows,
            "",
            "  nibble COMMAND --help tells a command's options",
            "  nibble --version      tells the version",
        ]
    )


def _run(command: str, arguments: Sequence[str]) -> int:
    # So that a killed command, too, removes what it has half written. Not one of
    # several ranks: it waits for its peers where no handler of Python's is called,
    # and mlx.launch, which ends the others when one has died, waits for it.
    if "MLX_RANK" not in os.environ:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        module = importlib.import_module(f"mlx_nibble.cli.{command}")
        module.main(arguments)
    except _Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        # All is cleaned up: another Ctrl-C need not wait for Python's own end.
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
    return 0


def complain(command: str, message: str) -> int:
    """Print an error as one line that names its operation.

    Returns:
        The exit status.
    """
    # Several lines are a list of what mlx-lm misses, which may be all of a model.
    message = textwrap.shorten(message, _LONGEST_MESSAGE, placeholder=" ...")
    named = message if _NAMED.match(message) else f"[{command}] {message}"
    print(f"nibble: {named}", file=sys.stderr)
    return 1


class _Terminated(KeyboardInterrupt):
    """SIGTERM: whatever cleans up after Ctrl-C, mlx-lm's server too, does so."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated

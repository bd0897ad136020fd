"""The commands are modules of this folder; a module's docstring is its help text.

The first line of the docstring is the line in the list of commands.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mlx_nibble.cli.printable import printable


@dataclass(frozen=True)
class Commands:
    """A list of commands: those of ``nibble``, or the parts of one of them.

    Attributes:
        program: Words before the name of a command.
        noun: Word for an entry: "command" or "part".
        prefix: Start of the modules' names.
        names: Names of the commands, in the order of the help text.
        about: One line about all of them.
        more: Further lines of the help text.
    """

    program: str
    noun: str
    prefix: str
    names: tuple[str, ...]
    about: str
    more: str = ""

    def choose(self, arguments: Sequence[str]) -> str | int:
        """Return the name of a command, or print help and return the exit status."""
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(self.usage())
            return 0 if arguments else 2
        name = arguments[0]
        if name in self.names:
            return name
        wrong = f"{self.program}: there is no {self.noun} {name!r}"
        print(f"{wrong}\n\n{self.usage()}", file=sys.stderr)
        return 2

    def load(self, name: str) -> ModuleType:
        """Import the module of a command."""
        return importlib.import_module(f"{__package__}.{self.prefix}{name}")

    def usage(self) -> str:
        """Return the help text, without importing a command."""
        rows = [
            f"  {name:<10}{help_text(self.prefix + name).splitlines()[0].rstrip('.')}"
            for name in self.names
        ]
        noun, upper = self.noun, self.noun.upper()
        return "\n".join(
            [
                f"usage: {self.program} {upper} [OPTIONS]",
                "",
                self.about,
                "",
                *rows,
                "",
                f"  {self.program} {upper} --help shows the options of a {noun}",
            ]
        ) + (self.more and f"\n{self.more}")


def help_text(module: str) -> str:
    """Return the docstring of a module of this folder, without importing it."""
    source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command, such as "bench kernels", without options."""
    text = help_text(command.replace(" ", "_"))
    return Parser(prog=f"nibble {command}", description=text)


class Parser(argparse.ArgumentParser):
    """A parser whose messages hold no control characters of a name."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message, keep="\n"), file)

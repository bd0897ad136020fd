"""Checks the language of comments, docstrings and documents.

    python tools/prose.py            # every tracked text of the project
    python tools/prose.py PATH...    # these files, and files below these folders

Reports sentences of more than 30 words, and openings and phrases that a reader has to
decode. CONTRIBUTING.md states the rule; this is its enforceable part.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS = 30
DOCUMENTS = {".md"}
PYTHON = {".py"}
CXX = {".h", ".cpp", ".metal"}
# Made by programs, or lists of facts with a form of their own.
SKIPPED = ("cmake/macos/sdk/",)

OPENINGS = re.compile(r"^(Of|What|Who|Whose) (?!is the|are the|follows)[a-z`]")
PHRASES = re.compile(
    r"\b(of it (?:those|that)|it is looked|so many|so much as|what there is|"
    r"none that there|that there are by|is looked (?:at|who)|who can still)\b",
    re.IGNORECASE,
)
# Text that is not prose: code spans become one word, links their label.
CODE = re.compile(r"``[^`]+``|`[^`]+`|\\\([^)]*\\\)")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|vs|cf|approx|Fig|No|al)\.")
SENTENCE = re.compile(r"(?<=[.!?:;])[\")\]]*\s+")
WORD = re.compile(r"[A-Za-zÀ-ÿ][\w'’\-/]*|\d[\w.,×%]*")

Block = tuple[int, str]  # first line, text


def blocks_of_text(
    text: str, first: int = 1, code_column: int | None = None
) -> Iterator[Block]:
    """Yield paragraphs and list items; leave out code, tables, headings and drawings.

    Args:
        text: Lines of a comment, a docstring or a document.
        first: Number of its first line.
        code_column: Column from which a paragraph is code, as in Markdown.
    """
    block: list[str] = []
    start, fenced, indent = first, False, None
    for number, line in enumerate([*text.split("\n"), ""], first):
        bare = line.strip()
        if bare.startswith("```"):
            fenced = not fenced
            bare = ""
        column = len(line) - len(line.lstrip())
        drawn = indent is not None and column - indent >= 4
        if indent is None and code_column is not None:
            drawn = column >= code_column
        skipped = fenced or bare.startswith(("|", "#", "<", ">>>", "[![")) or drawn
        item = re.match(r"([-*+]|\d+[.)])\s+", bare)
        section = re.match(r"(Args|Returns|Raises|Yields|Attributes|Example)s?:$", bare)
        entry = re.match(r"\**\w+(, \**\w+)*( \([^)]*\))?: ", bare)
        if not bare or skipped or item or section or entry:
            if block:
                yield start, " ".join(block)
            block = []
        if not bare or skipped or section:
            if not bare:
                indent = None
            continue
        if not block:
            start = number
        if indent is None:
            indent = column
        if item:
            bare = bare[item.end() :]
        elif entry:
            bare = bare[entry.end() :]
        block.append(bare)


def comments(lines: list[tuple[int, str, int]]) -> Iterator[Block]:
    """Join comment lines that follow one another in the same column."""
    run: list[str] = []
    first, last, column = 0, -2, -1
    for number, text, at in [*lines, (-9, "", -1)]:
        if run and (number != last + 1 or at != column):
            yield from blocks_of_text("\n".join(run), first, code_column=2)
            run = []
        if not run:
            first, column = number, at
        run.append(text)
        last = number


def blocks_of_python(text: str) -> Iterator[Block]:
    """Yield the docstrings and comments of a Python file."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("#!"):
            body = re.sub(r"^#+ ?", "", token.string)
            if not re.match(r"(noqa|type:|pyright:|fmt:|ruff:)", body):
                found.append((token.start[0], body, token.start[1]))
    yield from comments(found)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node):
            line = node.body[0].lineno
            yield from blocks_of_text(ast.get_docstring(node) or "", line)


def blocks_of_cxx(text: str) -> Iterator[Block]:
    """Yield the comments of a C++ or Metal file."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        match = re.search(r"(?<![:\"'])//(?!/) ?(.*)$", line)
        if match and line[: match.start()].count('"') % 2 == 0:
            found.append((number, match[1], match.start()))
    yield from comments(found)


def faults_of(text: str) -> Iterator[str]:
    """Yield a message for each rule that a paragraph breaks."""
    text = ABBREVIATIONS.sub(r"\1", LINK.sub(r"\1", CODE.sub("code", text)))
    for sentence in SENTENCE.split(text):
        words = WORD.findall(sentence)
        if len(words) > MOST_WORDS:
            yield f"{len(words)} words: {sentence[:90]}"
        if OPENINGS.match(sentence) and not sentence.rstrip().endswith("?"):
            yield f"opening: {sentence[:90]}"
        if phrase := PHRASES.search(sentence):
            yield f"'{phrase[0]}': {sentence[:90]}"


def check(path: Path) -> Iterator[str]:
    """Yield every fault of a file as ``path:line: message``."""
    text = path.read_text()
    if path.suffix in PYTHON:
        blocks = blocks_of_python(text)
    elif path.suffix in CXX:
        blocks = blocks_of_cxx(text)
    else:
        blocks = blocks_of_text(text, code_column=4)
    for line, block in blocks:
        for fault in faults_of(block):
            yield f"{path}:{line}: {fault}"


def files(arguments: list[str]) -> list[Path]:
    """Return the texts to check: those named, or all that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", *arguments], capture_output=True, text=True, check=True
    )
    kinds = DOCUMENTS | PYTHON | CXX
    names = [n for n in listed.stdout.split("\n") if n and not n.startswith(SKIPPED)]
    return [path for path in map(Path, names) if path.suffix in kinds]


def main() -> int:
    """Print all faults; return 1 if there are any."""
    faults = [fault for path in files(sys.argv[1:]) for fault in check(path)]
    print(*faults, sep="\n", end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

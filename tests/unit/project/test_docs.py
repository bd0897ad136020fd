"""README and docs are complete, and what they list is what the code has."""

from __future__ import annotations

import importlib
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from mlx_nibble import cli
from mlx_nibble.cli import bench as bench_command
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
IMAGES = DOCS / "images"
SOURCES = ["csrc", "python", "tests", "tools", "bench", "cmake", ".ci", "Makefile"]
# How each language reads a variable of the environment.
READS = [
    re.compile(r'\bgetenv\("(\w+)"\)'),
    re.compile(r'environ(?:\.get\(|\[)"(\w+)"'),
    re.compile(r'"(\w+)" (?:not )?in os\.environ'),
    re.compile(r"\$ENV\{(\w+)\}"),
    re.compile(r'^\s*exec "\$(\w+)"', re.M),
    re.compile(r"^(\w+)\s*\?=", re.M),
]
# The system's own, which mean here what they mean everywhere.
EVERYWHERE = {"HOME", "PATH", "PYTHONPATH"}
DELEGATED = {"generate", "chat", "serve"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


@cache
def pages() -> tuple[Path, ...]:
    """Return every Markdown file that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (ROOT / line for line in sorted(set(listed.stdout.splitlines())))
    return tuple(path for path in paths if path.exists())


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


def links(path: Path) -> list[str]:
    found = (a or b for a, b in LINK.findall(prose(path)))
    return [link for link in found if not re.match(r"\w+:", link)]


def anchors(path: Path) -> set[str]:
    """Return the names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.M)
    bare = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in bare}


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_in_the_index():
    index = DOCS / "README.md"
    listed = {(DOCS / link.partition("#")[0]).resolve() for link in links(index)}
    assert listed == {path for path in DOCS.rglob("*.md") if path != index}


def test_readme_is_short_and_leads_to_the_index():
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 130
    assert "docs/README.md" in links(readme)


def test_every_picture_is_shown():
    shown = {(page.parent / link).resolve() for page in pages() for link in links(page)}
    assert {path for path in IMAGES.iterdir() if path not in shown} == set()


@pytest.mark.parametrize(
    "path",
    [path for path in pages() if DOCS in path.parents or path.parent == ROOT],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_lines_have_one_width(path):
    # Tables, code and links have no place where a line could end.
    whole = re.compile(r"\s*\||#|    |.*\S{60}|!\[")
    long = [line for line in prose(path).splitlines() if len(line) > 88]
    assert [line for line in long if not whole.match(line)] == []


def variables_of_the_code() -> set[str]:
    found = set()
    for source in SOURCES:
        top = ROOT / source
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                text = path.read_text(errors="ignore")
                found |= {name for read in READS for name in read.findall(text)}
    return found - EVERYWHERE


def test_every_environment_variable_is_documented():
    text = (DOCS / "reference" / "environment.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert len(documented) == len(set(documented))
    assert set(documented) == variables_of_the_code()


def sections() -> dict[str, str]:
    """Return the text of each command's section."""
    text = (DOCS / "reference" / "commands.md").read_text()
    parts = re.split(r"^## `nibble ([\w ]+)`$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_is_documented():
    commands = {name for name in cli.COMMANDS.names if name != "bench"}
    commands |= {f"bench {part}" for part in bench_command.PARTS.names}
    assert set(sections()) == commands


def options_of(command: str, help_text: str) -> set[str]:
    if command in DELEGATED:
        # mlx-lm's options come first, with their own heading.
        help_text = help_text.rpartition("options:\n")[2]
    lines = re.findall(r"^  (-.*?)(?:  .*)?$", help_text, re.M)
    return {name for line in lines for name in re.findall(r"(?<!\S)--?[\w-]+", line)}


@pytest.mark.parametrize("command", list(sections()))
def test_every_option_of_a_command_is_documented(command, capsys, monkeypatch):
    # Options beside each other, each with its arguments on the same line.
    monkeypatch.setenv("COLUMNS", "1000")
    module = importlib.import_module(f"mlx_nibble.cli.{command.replace(' ', '_')}")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    options = options_of(command, capsys.readouterr().out) - {"-h", "--help"}
    rows = re.findall(r"^\| (`-.*?) \|", sections()[command], re.M)
    documented = [
        name for row in rows for name in re.findall(r"`(--?[\w-]+)[^`]*`", row)
    ]
    assert len(documented) == len(set(documented))
    assert set(documented) == options

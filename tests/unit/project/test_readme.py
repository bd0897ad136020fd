"""The figures of README and docs come from the committed capsules."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from bench import quantization, readme
from bench import tables as tables_of
from mlx_nibble.bench import capsule

DOCS = [readme.ROOT / "README.md", *sorted((readme.ROOT / "docs").rglob("*.md"))]
# A measured figure has a fraction or a unit.
FIGURE = re.compile(r"\d\.\d|\d ?(×|%|ms|µs|s|MB|GB)(?!\w)")
COMMAND = re.compile(
    r"python -m (bench|tests|pytest)\b|\bnibble (bench|convert|demo|eval|tune)\b"
    r"|\bmake installs\b"
)
# A test asserts these.
ASSERTED = re.compile(r"`tests/[\w/]+\.py`\s+asserts")
SCHEMA = readme.ROOT / "docs" / "reference" / "capsule.schema.json"
CAPSULE = re.compile(r"bench/capsules/[\w.-]+\.json")
# Computed, not measured: the text says how.
COMPUTED = {
    ("formats.md", "## Floats"),
    ("formats.md", "## Bytes"),
    ("numerics.md", "## How far a result may be off"),
}


def sections(path: Path) -> list[str]:
    return re.split(r"(?m)^(?=#+ )", path.read_text())


def tables(section: str) -> list[list[list[str]]]:
    """Return rows of cells, the heading first, without the rule below it."""
    found = []
    for block in re.findall(r"(?m)(?:^\|.*\n)+", section):
        lines = [line.strip().strip("|").split("|") for line in block.splitlines()]
        rows = [[cell.strip() for cell in line] for line in lines]
        found.append([rows[0], *rows[2:]])
    return found


@pytest.mark.parametrize("path", readme.PAGES, ids=lambda path: path.name)
def test_the_tables_are_the_capsules(path):
    assert readme.rewrite(path) == path.read_text(), "run python -m bench.readme"


def test_the_first_paragraph_is_the_capsule():
    text = " ".join((readme.ROOT / "README.md").read_text().split())
    assert tables_of.headline(readme.load("demo")) in text


def test_the_table_of_quantization_is_the_capsule():
    text = quantization.DOCUMENT.read_text()
    results = json.loads(quantization.CAPSULE.read_text())
    message = "run python -m bench.quantization FOLDER"
    assert quantization.document(text, results) == text, message


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_table_of_figures_names_the_command_that_made_it(path):
    for section in sections(path):
        heading = section.partition("\n")[0]
        if (path.name, heading) in COMPUTED:
            continue
        for header, *rows in tables(section):
            figures = sum(bool(FIGURE.search(c)) for row in rows for c in row[1:])
            if figures >= 3:
                named = COMMAND.search(section) or ASSERTED.search(section)
                assert named, (heading, header)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_capsule_that_is_named_is_there(path):
    for name in CAPSULE.findall(path.read_text()):
        assert (readme.ROOT / name).is_file(), name


def test_the_capsules_of_the_common_form_are_as_the_schema_says():
    schema = json.loads(SCHEMA.read_text())
    made = {p.stem: json.loads(p.read_text()) for p in readme.CAPSULES.glob("*.json")}
    common = {name for name, found in made.items() if "schema" in found}
    assert common >= {"cpu", "demo", "generation", "llama", "matmul", "tune"}
    for name in common:
        jsonschema.validate(made[name], schema)
        capsule.check(made[name])


def test_every_capsule_is_named_with_the_command_that_made_it():
    text = " ".join(" ".join(path.read_text() for path in DOCS).split())
    for path in readme.CAPSULES.glob("*.json"):
        # README's tables are made from theirs.
        assert path.name in text or path.stem == "demo", path.name
        command = json.loads(path.read_text()).get("command")
        assert command is None or " ".join(command) in text, path.name

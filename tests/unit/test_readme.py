"""The figures of README and docs are those of the capsules that are committed."""

import json
import re
import statistics
from pathlib import Path

import pytest

from bench import quantization, readme, timing

DOCS = [readme.ROOT / "README.md", *sorted((readme.ROOT / "docs").glob("*.md"))]
# A figure as measured: with a fraction or a unit.
FIGURE = re.compile(r"\d\.\d|\d ?(×|%|ms|µs|s|MB|GB)(?!\w)")
COMMAND = re.compile(
    r"python -m (bench|tests|pytest)\b|\bnibble (bench|convert|demo|eval|tune)\b"
)
# Or a test holds them.
ASSERTED = re.compile(r"`tests/[\w/]+\.py`\s+asserts")
CAPSULE = re.compile(r"bench/capsules/[\w.-]+\.json")
# Reckoned, not measured: the text says how.
RECKONED = {("format.md", "## Bytes")}
# Headings of docs/cpu.md, and who they are in its capsules.
PRODUCTS = {
    "exact": "nibble",
    "int8": "nibble int8",
    "exact repacked": "nibble repacked",
    "int8 repacked": "nibble int8 repacked",
    "MLX": "mlx",
    "torch": "torch exact",
    "ONNX Runtime": "onnxruntime exact",
    "ONNX Runtime int8": "onnxruntime int8",
    "OpenVINO": "openvino exact",
    "OpenVINO int8": "openvino int8",
    "llama.cpp Q4_0": "llama.cpp Q4_0 int8",
    "llama.cpp Q4_1": "llama.cpp Q4_1 int8",
}
MODELS = {
    "int8": "int8",
    "exact": "exact",
    "llama.cpp, Q4_1": "llama.cpp",
    "stock MLX": "stock",
}


def sections(path: Path) -> list[str]:
    return re.split(r"(?m)^(?=#+ )", path.read_text())


def tables(section: str) -> list[list[list[str]]]:
    """Rows of cells, the heading first, without the rule below it."""
    found = []
    for block in re.findall(r"(?m)(?:^\|.*\n)+", section):
        lines = [line.strip().strip("|").split("|") for line in block.splitlines()]
        rows = [[cell.strip() for cell in line] for line in lines]
        found.append([rows[0], *rows[2:]])
    return found


def agrees(cell: str, value: float) -> bool:
    """Whether a cell is the value, rounded to the digits that it has."""
    match = re.match(r"[\d.]+", cell)
    assert match, cell
    decimals = len(match[0].partition(".")[2])
    # A capsule keeps six digits, so a half may have been rounded either way.
    return abs(float(match[0]) - value) <= 0.5 * 10**-decimals + 1e-5 * value


def test_the_tables_are_the_capsules():
    text = (readme.ROOT / "README.md").read_text()
    assert readme.rewrite(text) == text, "run python -m bench.readme"


def test_the_first_paragraph_is_the_capsule():
    text = " ".join((readme.ROOT / "README.md").read_text().split())
    assert readme.headline(readme.load("demo")) in text


def test_the_table_of_quantization_is_the_capsule():
    text = quantization.DOCUMENT.read_text()
    results = json.loads(quantization.CAPSULE.read_text())
    message = "run python -m bench.quantization FOLDER"
    assert quantization.document(text, results) == text, message


def test_the_table_of_products_is_its_capsules():
    section = next(
        s
        for s in sections(readme.ROOT / "docs" / "cpu.md")
        if "bench/capsules/cpu.json" in s
    )
    medians = {}
    for name, suffix in (("cpu", ""), ("cpu_hot", " hot")):
        for result in readme.load(name)["results"]:
            taken = timing.samples(result)
            label = f"{result['case']['rows']}{suffix}"
            medians[label] = {n: 1e3 * statistics.median(s) for n, s in taken.items()}
    checked = 0
    for header, *rows in tables(section):
        if header[0] != "rows":
            continue
        for label, *cells in rows:
            for heading, cell in zip(header[1:], cells, strict=True):
                if cell and heading in PRODUCTS:
                    value = medians[label][PRODUCTS[heading]]
                    assert agrees(cell, value), (label, heading, cell, value)
                    checked += 1
    assert checked > 20


def test_the_table_beside_llama_cpp_is_its_capsule():
    section = next(
        s
        for s in sections(readme.ROOT / "docs" / "cpu.md")
        if "bench/capsules/llama.json" in s
    )
    results = readme.load("llama")["results"]
    header, *rows = next(t for t in tables(section) if "decode" in t[0])
    for label, *cells in rows:
        result = results[MODELS[label]]
        for heading, cell in zip(header[1:], cells, strict=True):
            if not cell:
                continue
            if heading.startswith("prompt of "):
                tokens = heading.removeprefix("prompt of ")
                value = int(tokens) / statistics.median(result["prompt"][tokens])
            elif heading == "decode":
                value = 1 / statistics.median(result["decode"])
            else:
                value = result["peak_bytes"] / 1e6
            assert agrees(cell, value), (label, heading, cell, value)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_table_of_figures_names_the_command_that_made_it(path):
    for section in sections(path):
        heading = section.partition("\n")[0]
        if (path.name, heading) in RECKONED:
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


def test_every_capsule_is_named_and_says_how_it_was_made():
    text = "".join(path.read_text() for path in DOCS)
    for path in readme.CAPSULES.glob("*.json"):
        # README's tables are made from theirs.
        made = f"`{path.stem}`" in text or path.name in text
        assert made or path.stem in ("demo", "matmul", "llama"), path.name

"""The figures of README and docs are those of the capsules that are committed."""

import json

from bench import quantization, readme


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

"""README's figures are those of the capsules that are committed."""

from bench import readme


def test_the_tables_are_the_capsules():
    text = (readme.ROOT / "README.md").read_text()
    assert readme.rewrite(text) == text, "run python -m bench.readme"


def test_the_first_paragraph_is_the_capsule():
    text = " ".join((readme.ROOT / "README.md").read_text().split())
    assert readme.headline(readme.load("demo")) in text

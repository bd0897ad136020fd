"""Pictures of a run: files that open, and a self-contained page."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from mlx_nibble.bench import capsule
from mlx_nibble.cli import main
from mlx_nibble.pictures.page import report
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

RUN = ROOT / "bench" / "capsules" / "matmul.json"


class Page(HTMLParser):
    """Collects the references of a page, and checks that its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta",):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.references.append(value or "")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_drawn_and_the_same_each_time(suffix, tmp_path):
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        assert main(["bench", "plot", str(RUN), str(path)]) == 0
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_the_page_needs_nothing_else():
    page = Page()
    text = report(capsule.read(RUN))
    page.feed(text)
    assert page.open == []
    assert page.tags.count("svg") == 3
    inside = ("#", "data:image/png;base64,")
    assert all(reference.startswith(inside) for reference in page.references)
    assert not re.search(r"url\((?!#)|@import|<script", text)
    made = capsule.read(RUN)
    made["command"] = ["<script>alert(1)</script>"]
    made["machine"]["cpu"] = "<b>"
    assert "<script" not in report(made) and "<b>" not in report(made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.json", "out.gif"], "a picture must be named .png or .svg"),
        (["absent.json", "out.svg"], "No such file"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "plot", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_browser_shows_it(tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("the browser is not installed (Debian: chromium)")
    page = tmp_path / "run.html"
    assert main(["bench", "plot", str(RUN), str(page)]) == 0
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    shown = subprocess.run(
        [browser, *options, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0
    assert shown.stdout.count("<svg") == 3 and "All cases" in shown.stdout

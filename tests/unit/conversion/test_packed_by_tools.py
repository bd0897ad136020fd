"""Matrices that AutoGPTQ, GPTQModel, AutoAWQ and compressed-tensors packed themselves.

The committed files were made by the tools' own code, and have the digests of what that
code dequantizes to. Where a tool is installed, it packs other matrices here.
"""

from __future__ import annotations

import importlib.util

import pytest

from tests.support.packed_by_tools import TOOLS, digest_of, load, package_of
from tests.support.paths import ROOT
from tests.unit.conversion.test_packed_layouts import read

FILES = sorted((ROOT / "tests/fixtures/packed").glob("*.npz"))


def require_same(case) -> None:
    weights, _, _ = read(case.settings, case.parts)
    assert digest_of(weights) == case.digest, case.settings


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_of_the_tools(file):
    for case in load(file):
        require_same(case)


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tools_themselves(tool, rng):
    if importlib.util.find_spec(package_of(tool)) is None:
        pytest.skip(f"{tool} is not installed: it needs PyTorch")
    for case in TOOLS[tool](rng):
        require_same(case)

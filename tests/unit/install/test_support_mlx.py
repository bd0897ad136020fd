"""`make mlx` edits every place that names a supported version."""

from __future__ import annotations

import re
import shutil

import mlx_wheels
import pytest
import support_mlx
import tomllib
from packaging.requirements import Requirement

from tests.support.paths import ROOT


@pytest.fixture
def copy(tmp_path):
    for name in (support_mlx.PROJECT, support_mlx.NATIVE, *support_mlx.DOCUMENTS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_a_version_is_added_and_removed_everywhere(copy):
    before = mlx_wheels.versions(ROOT)
    changed = support_mlx.write_versions(copy, [*before, "0.33.0"])
    assert {support_mlx.PROJECT, support_mlx.NATIVE} <= set(changed)
    project = tomllib.loads((copy / support_mlx.PROJECT).read_text())
    assert project["tool"]["mlx-nibble"]["mlx-versions"] == [*before, "0.33.0"]
    required = {
        str(Requirement(text).specifier)
        for text in (
            *project["build-system"]["requires"],
            *project["project"]["dependencies"],
        )
        if Requirement(text).name == "mlx"
    }
    assert required == {f"<0.33.1,>={before[0]}"}
    native: dict[str, object] = {}
    text = (copy / support_mlx.NATIVE).read_text()
    for name in ("MLX_VERSIONS", "REQUIREMENT"):
        exec(re.search(rf"^{name} = .*$", text, re.M)[0], native)
    assert native["MLX_VERSIONS"] == (*before, "0.33.0")
    assert native["REQUIREMENT"] == f"mlx>={before[0]},<0.33.1"
    support_mlx.write_versions(copy, before)
    for name in changed:
        assert (copy / name).read_text() == (ROOT / name).read_text()


def test_one_version_is_still_a_tuple(copy):
    support_mlx.write_versions(copy, ["0.32.4"])
    assert '\nMLX_VERSIONS = ("0.32.4",)\n' in (copy / support_mlx.NATIVE).read_text()

"""`make release` sets every place that states the version."""

from __future__ import annotations

import shutil

import pytest
import release
import tomllib

from tests.support.paths import ROOT

FILES = (
    "pyproject.toml",
    "python/mlx_nibble/_version.py",
    "CITATION.cff",
    "CHANGELOG.md",
)


@pytest.fixture
def copy(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_a_release_is_set_everywhere(copy):
    changes = copy / "CHANGELOG.md"
    changes.write_text("# Changelog\n\n## [1.2.3] - unreleased\n\n- A change.\n")
    release.set_version(copy, "1.2.3", "2027-01-02")
    project = tomllib.loads((copy / "pyproject.toml").read_text())
    assert project["project"]["version"] == "1.2.3"
    assert '__version__ = "1.2.3"\n' in (copy / FILES[1]).read_text()
    assert "\nversion: 1.2.3\n" in (copy / "CITATION.cff").read_text()
    assert "## [1.2.3] - 2027-01-02\n" in changes.read_text()


def test_a_release_without_a_changelog_changes_nothing(copy):
    before = {name: (copy / name).read_text() for name in FILES}
    with pytest.raises(ValueError, match="a section '## .9.9.9. - unreleased'"):
        release.set_version(copy, "9.9.9", "2027-01-02")
    assert before == {name: (copy / name).read_text() for name in FILES}

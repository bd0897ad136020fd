"""Locks: one process at a time, which another one waits for or hears of."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlx_nibble.io.lock import Held, exclusive

_COUNT = """
import sys
from pathlib import Path
from mlx_nibble.io.cache import cache_lock
for _ in range(100):
    with cache_lock("count") as folder:
        file = folder / "count"
        file.write_text(str(int(file.read_text() or 0) + 1))
"""


def test_processes_wait_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path))
    (tmp_path / "count").touch()
    running = [subprocess.Popen([sys.executable, "-c", _COUNT]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "300"


def test_who_does_not_wait_is_told_who_has_it(tmp_path):
    with exclusive(tmp_path / "lock"):
        with pytest.raises(Held, match=r"^\d+$"), exclusive(tmp_path / "lock"):
            pass
    assert not list(tmp_path.iterdir())

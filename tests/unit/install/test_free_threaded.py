"""A free-threaded CPython, which has no stable ABI, is refused before any work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

# What sysconfig says there.
FREE_THREADED = """
import sysconfig

sysconfig.get_config_vars()["Py_GIL_DISABLED"] = 1
"""


def test_the_build_says_what_is_required(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(FREE_THREADED)
    cmake = Path(sys.executable).with_name("cmake")
    done = subprocess.run(
        [cmake, "-S", ROOT, "-B", tmp_path / "build"]
        + [f"-DPython_EXECUTABLE={sys.executable}"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    said = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert "a CPython with the global interpreter lock is required" in said

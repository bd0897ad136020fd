"""Killed conversions give the bytes of whole ones: a short run of `tests.kills`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.slow
def test_some_kills():
    command = [sys.executable, "-m", "tests.kills", "--count", "10", "--races", "2"]
    command += ["--cases", "rtn", "gptq", "packed", "gguf, gptq"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 conversions in 4 ways, 0 failures" in done.stdout

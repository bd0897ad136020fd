"""Commands of `nibble` in the tests' own process, which has imported everything."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from pathlib import Path

from mlx_nibble.cli import main


def nibble(*arguments: str, cwd: Path | str = ".") -> subprocess.CompletedProcess[str]:
    """Run a command and return its status and what it printed.

    Args:
        arguments: The command line without `nibble`.
        cwd: The working folder.
    """
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(cwd)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as usage:
            status = int(usage.code or 0)
        finally:
            os.chdir(before)
    return subprocess.CompletedProcess(
        arguments, status, out.getvalue(), err.getvalue()
    )

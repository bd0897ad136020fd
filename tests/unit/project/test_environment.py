"""Users without a home, folders that cannot be written, other interpreters."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

USE = """
import warnings
warnings.simplefilter("always")
import mlx.core as mx, mlx.nn as nn
import mlx_nibble
model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
nn.quantize(model, 32, 4)
report = mlx_nibble.accelerate(model)
mx.eval(model(mx.ones((2, 64))))
from mlx_nibble.machine import tuned_table, verdicts
from mlx_nibble.machine.trial import _one_line
judge = verdicts.Verdicts(verdicts.Machine("gpu", "", "", ""), None)
judge._update(lambda stored: stored.failures.update({"a": None}))
judge._known = {"a": verdicts.Verdict("a")}
assert judge("a") and _one_line(ValueError("b")) == "b"
assert tuned_table.load() == {} and tuned_table.in_use() == (0, {})
print(len(report.swapped))
"""


def run(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def environment(**changes: str | None) -> dict[str, str]:
    names = {"NIBBLE_CACHE_DIR": None, "XDG_CACHE_HOME": None, **changes}
    kept = {k: v for k, v in os.environ.items() if k not in names}
    return kept | {k: v for k, v in names.items() if v is not None}


@pytest.mark.parametrize("home", [None, "", "/nonexistent"])
@pytest.mark.parametrize("user", [None, 54321])
def test_a_user_without_an_entry_or_a_home(home, user):
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    # As root until it starts: the interpreter may be in root's own folder.
    become = "" if user is None else f"import os; os.setuid({user})\n"
    found = run("import mlx_nibble\n" + become + USE, env=environment(HOME=home))
    assert (found.returncode, found.stdout, found.stderr) == (0, "2\n", "")


@pytest.mark.parametrize("kind", ["file", "below a file", "read-only", "dangling"])
def test_a_cache_that_cannot_be_written(tmp_path, kind):
    cache = tmp_path / "cache"
    if kind == "read-only":
        cache.mkdir()
        cache.chmod(0o500)
    elif kind == "dangling":
        cache.symlink_to(tmp_path / "missing" / "too")
    else:
        cache.write_text("")
    if kind == "below a file":
        cache = cache / "inner"
    found = run(USE, env=environment(NIBBLE_CACHE_DIR=str(cache)))
    assert (found.returncode, found.stdout, found.stderr) == (0, "2\n", "")


def test_what_needs_a_cache_says_how_to_give_one():
    code = (
        "import os, pwd; os.environ.pop('HOME', None)\n"
        "def nobody(_): raise KeyError\n"
        "pwd.getpwuid = nobody\n"
        "from mlx_nibble.cli import main; raise SystemExit(main(['tune', '--clear']))"
    )
    found = run(code, env=environment(HOME=None))
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1 and "set NIBBLE_CACHE_DIR" in found.stderr


def test_a_subinterpreter_is_refused():
    code = (
        "try:\n    import _interpreters as m\n"
        "except ImportError:\n    import _xxsubinterpreters as m\n"
        "m.run_string(m.create(), '''\n"
        "try:\n    import mlx_nibble\n"
        "except ImportError as error:\n    print(error, flush=True)\n''')"
    )
    found = run(code, cwd=ROOT)
    assert "the main interpreter was required" in found.stdout, found.stderr

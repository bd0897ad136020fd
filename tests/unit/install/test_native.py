"""The package beside an mlx, or an installation, that it does not fit."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_nibble import _native

# Another mlx, as far as this package sees.
FOREIGN = "import mlx.core as mx; mx.__version__ = '0.31.0'; "
COMMAND = (
    FOREIGN + "import sys; sys.argv = ['/usr/bin/nibble', 'inspect', 'no/such']; "
    "from mlx_nibble.cli import main; sys.exit(main(sys.argv[1:]))"
)
FIX = f"pip install '{_native.REQUIREMENT}'"


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | env,
    )


def test_another_mlx_leaves_the_package_inactive_with_one_warning():
    done = run(
        FOREIGN + "import mlx_nibble; print(mlx_nibble.ops.supports('x', 4, 64))"
    )
    assert done.returncode == 0 and done.stdout == "False\n"
    assert done.stderr.count("RuntimeWarning") == 1
    assert "supports mlx 0.32.3 and 0.32.4 but mlx 0.31.0 is installed" in done.stderr
    assert FIX in done.stderr


def test_a_server_can_require_the_kernels():
    done = run(FOREIGN + "import mlx_nibble", NIBBLE_REQUIRE_ACTIVE="1")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: [mlx_nibble] mlx-nibble is inactive, ")
    assert FIX in last and "NIBBLE_REQUIRE_ACTIVE" in last
    assert run(FOREIGN + "import mlx_nibble", NIBBLE_REQUIRE_ACTIVE="0").returncode == 0


@pytest.mark.parametrize(("forced", "red"), [("1", True), ("", False)])
def test_a_command_says_once_and_in_red_that_it_is_inactive(forced, red):
    env = {"FORCE_COLOR": forced, "NO_COLOR": "", "TERM": "xterm"}
    done = run(COMMAND, HF_HUB_OFFLINE="1", **env)
    said, error = done.stderr.splitlines()
    assert done.returncode == 1 and error.startswith("nibble: [")
    assert "mlx-nibble is inactive, " in said and FIX in said
    assert said.startswith("\x1b[1;31m") == red


def test_an_installation_for_another_mlx_says_so(monkeypatch):
    monkeypatch.setattr(_native, "MLX_VERSIONS", ("0.0.1",))
    ext, reason = _native._load("0.0.1")
    assert ext is None and "compiled for another mlx than 0.0.1" in reason


def test_a_missing_backend_of_nanobind_is_said_to_be_missing(monkeypatch):
    def load(name: str) -> None:
        raise ModuleNotFoundError(
            "No module named 'nanobind_backend'", name="nanobind_backend"
        )

    monkeypatch.setattr(importlib, "import_module", load)
    ext, reason = _native._load(_native.mlx_version)
    assert ext is None and "cannot be loaded: No module named 'nanobind_b" in reason


def refuse(array: object) -> None:
    raise TypeError("accepts(): incompatible function arguments")


def test_an_extension_that_knows_another_array_is_not_used(monkeypatch):
    # Two versions of nanobind's table of types, each with an array of its own.
    other = SimpleNamespace(accepts=refuse)
    monkeypatch.setattr(importlib, "import_module", lambda name: other)
    ext, reason = _native._load(_native.mlx_version)
    assert ext is None and "nanobind-backend" in reason


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("libmlx.so: cannot open shared object file", "pip install 'mlx[cpu]'"),
        ("libcuda.so.1: cannot open shared object file", "NVIDIA driver"),
    ],
)
def test_without_a_backend_the_import_says_what_to_install(
    tmp_path: Path, text: str, advice: str
):
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "core.py").write_text(f"raise ImportError({text!r})\n")
    done = run("import mlx_nibble", PYTHONPATH=str(tmp_path))
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: [mlx_nibble] a backend of MLX was required")
    assert text in last and advice in last

"""The layers of C++ and Python, and facts that two places state."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from mlx_nibble import _ext, _native
from tests.support.paths import ROOT

PACKAGE = ROOT / "python" / "mlx_nibble"

CXX_MAY_INCLUDE = {
    "kernels": {"kernels"},
    "csrc/core": {"csrc/core", "kernels"},
    "csrc/core/plan": {"csrc/core", "csrc/core/plan", "kernels"},
    "csrc/cpu": {"csrc/core", "csrc/cpu"},
    "csrc/metal": {"csrc/core", "csrc/metal", "mlx"},
    "csrc/mlx": {"csrc/core", "csrc/cpu", "csrc/metal", "csrc/mlx", "mlx"},
    "csrc": {"csrc", "csrc/mlx", "mlx", "nanobind"},  # bindings
}
# Parsing an option must not need a model, and only `lm` imports mlx-lm.
PYTHON_ORDER = [
    "_ext",
    "_native",
    "rounding",
    "selfcheck",
    "pickling",
    "ops",
    "symmetric",
    "tuning",
    "fast",
    "nn",
    "rebind",
    "shared",
    "repack",
    "report",
    "route",
    "accelerate",
    "diagnosis",
    "lm",
    "convert",
    "cli",
]


def cxx_sources():
    for layer in CXX_MAY_INCLUDE:
        for path in (ROOT / layer).glob("*"):
            if path.suffix in {".h", ".cpp"}:
                yield pytest.param(layer, path, id=str(path.relative_to(ROOT)))


@pytest.mark.parametrize(("layer", "path"), list(cxx_sources()))
def test_a_layer_includes_only_what_it_may(layer, path):
    allowed = CXX_MAY_INCLUDE[layer]
    text = path.read_text()
    for name in re.findall(r'^#include ["<]([^">]+/[^">]+)[">]', text, re.M):
        if name.startswith("sys/"):
            continue
        home = name.rsplit("/", 1)[0]
        top = home if home.startswith("csrc") else home.split("/")[0]
        assert top in allowed, f"{path.name} includes {name}"


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "mlx_nibble":
                found |= {f"mlx_nibble.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("name", PYTHON_ORDER[1:-2])
def test_a_module_imports_only_what_is_below(name):
    place = PYTHON_ORDER.index(name)
    for module in imports_of(PACKAGE / f"{name}.py"):
        if module.startswith("mlx_nibble."):
            other = module.split(".")[1]
            if other in PYTHON_ORDER:
                assert PYTHON_ORDER.index(other) < place, f"{name} imports {other}"


@pytest.mark.parametrize(
    "path", [*(PACKAGE / "quantize").glob("*.py")], ids=lambda path: path.name
)
def test_quantizers_are_functions_of_arrays(path):
    for module in imports_of(path):
        if module.split(".")[0] in ("mlx", "mlx_lm", "pathlib", "os"):
            raise AssertionError(f"{path.name} imports {module}")
        if module.startswith("mlx_nibble."):
            assert module.split(".")[1] in ("formats", "quantize", "rounding"), module


def test_only_lm_imports_mlx_lm():
    for path in PACKAGE.rglob("*.py"):
        if path.name == "lm.py":
            continue
        used = {m for m in imports_of(path) if m.split(".")[0] == "mlx_lm"}
        assert not used, f"{path.relative_to(ROOT)} imports {used}"


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, mlx_nibble; heavy = {'mlx_lm', 'transformers', 'rich', "
        "'numpy', 'tokenizers', 'huggingface_hub'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_one_mlx_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    stated = re.findall(
        r"mlx(?:\[cpu\])?==([\d.]+)",
        " ".join(
            project["build-system"]["requires"] + project["project"]["dependencies"]
        ),
    )
    cmake = (ROOT / "CMakeLists.txt").read_text()
    stated += re.findall(r"NIBBLE_MLX_VERSION ([\d.]+)\)", cmake)
    assert len(stated) == 5
    assert set(stated) == {_native.MLX_VERSION, _ext.mlx_version}


def test_one_package_version_everywhere():
    import mlx_nibble

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == mlx_nibble.__version__
    assert f"## [{mlx_nibble.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {mlx_nibble.__version__}\n" in citation


def test_the_committed_stub_is_the_extension(tmp_path):
    stub = tmp_path / "_ext.pyi"
    subprocess.run(
        [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "mlx_nibble._ext"]
        + ["-o", stub],
        check=True,
    )
    committed = (PACKAGE / "_ext.pyi").read_text()
    assert stub.read_text() == committed, "run `make stubs`"


@pytest.mark.parametrize(
    ("name", "value"), [("NIBBLE_CPU_ISA", "abacus"), ("NIBBLE_NUM_THREADS", "-1")]
)
def test_a_wrong_setting_is_said_at_import_and_mlx_takes_over(name, value):
    code = "from mlx_nibble import ops; print(ops.holds('affine', 4, 64))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, name: value},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "False\n"
    assert name in result.stderr and f"'{value}'" in result.stderr

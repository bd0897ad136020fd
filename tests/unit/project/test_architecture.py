"""The layers of C++ and Python, and facts that two places state."""

from __future__ import annotations

import ast
import graphlib
import itertools
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import tomllib

from mlx_nibble import _native, formats
from tests.support.paths import ROOT

PACKAGE = ROOT / "python" / "mlx_nibble"

# csrc/mlx, lowest first. ops.h and fast.h declare in the lowest folder what ops/
# defines: nodes and fusion call operations too.
MLX_ORDER = ["csrc/mlx"]
MLX_ORDER += [f"csrc/mlx/{d}" for d in ("facts", "nodes", "fusion", "ops")]
# The folders that the files of each folder may include.
CXX_MAY_INCLUDE = {
    "kernels": {"kernels"},
    "kernels/cuda": {"kernels"},
    "csrc/core": {"csrc/core", "kernels"},
    "csrc/core/plan": {"csrc/core", "csrc/core/plan", "kernels"},
    "csrc/cpu": {"csrc/core", "csrc/cpu"},
    "csrc/metal": {"csrc/core", "csrc/metal", "mlx"},
    "csrc/cuda": {"csrc/core", "csrc/cuda", "mlx"},
    **{
        folder: {f"csrc/{f}" for f in ("core", "cpu", "cuda", "metal")}
        | {"mlx", *MLX_ORDER[: i + 1]}
        for i, folder in enumerate(MLX_ORDER)
    },
    # Bindings.
    "csrc": {"csrc", "csrc/mlx", "csrc/mlx/facts", "csrc/mlx/fusion"}
    | {"mlx", "nanobind"},
}
# Every folder and module of the package's root, each above all that it imports.
# "__init__" is the root itself. Only `lm` and what is above it need mlx-lm.
PYTHON_ORDER = [
    "_version",
    "_interpreter",
    "_native",
    "_pickling",
    "_arguments",
    "_experts",
    "numerics",
    "progress",
    "floats",
    "formats",
    "io",
    "ops",
    "fast",
    "nn",
    "machine",
    "acceleration",
    "__init__",
    "lm",
    "quantize",
    "layerwise",
    "evaluation",
    "conversion",
    "distill",
    "bench",
    "pictures",
    "tune",
    "cli",
    "__main__",
]


def cxx_sources():
    paths = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp"}]
    for path in [*paths, *(ROOT / "kernels").rglob("*.h")]:
        folder = str(path.parent.relative_to(ROOT))
        yield pytest.param(folder, path, id=str(path.relative_to(ROOT)))


def includes(path: Path) -> set[str]:
    """The folders of the files that a C++ file includes; "mlx" for all of MLX's."""
    text = path.read_text()
    names = re.findall(r'^#include ["<]([^">]+/[^">]+)[">]', text, re.M)
    homes = {name.rsplit("/", 1)[0] for name in names} - {"sys"}
    return {h if h.startswith("csrc") else h.split("/")[0] for h in homes}


@pytest.mark.parametrize(("folder", "path"), list(cxx_sources()))
def test_a_folder_includes_only_what_it_may(folder, path):
    assert includes(path) <= CXX_MAY_INCLUDE[folder]


def test_no_folders_include_each_other():
    graph: dict[str, set[str]] = {}
    for folder, path in (source.values for source in cxx_sources()):
        graph.setdefault(folder, set()).update(includes(path) - {folder})
    TopologicalSorter(graph).prepare()  # raises CycleError


def imports_of(path: Path) -> set[str]:
    """Return the modules that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} imports relatively"
            if node.module == "mlx_nibble":
                found |= {f"mlx_nibble.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def unit_of(module: str) -> str:
    """Return the folder or root module that `mlx_nibble.…` belongs to."""
    name = f"{module}.__init__".split(".")[1]
    there = (PACKAGE / name).is_dir() or list(PACKAGE.glob(f"{name}.py*"))
    return name if there else "__init__"  # a name that the root defines


def units() -> set[str]:
    """Return all folders and root modules of the package."""
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    modules = {path.name.split(".")[0] for path in PACKAGE.glob("*.py*")}
    return modules | {folder.parts[0] for folder in folders if folder.parts}


def files_of(unit: str) -> list[Path]:
    return [*(PACKAGE / unit).rglob("*.py"), *PACKAGE.glob(f"{unit}.py")]


def test_the_order_names_every_folder_and_root_module():
    assert sorted(PYTHON_ORDER) == sorted(units())


@pytest.mark.parametrize("unit", PYTHON_ORDER)
def test_a_folder_imports_only_what_is_below(unit):
    below = PYTHON_ORDER[: PYTHON_ORDER.index(unit)]
    for path in files_of(unit):
        for module in imports_of(path):
            if module.split(".")[0] == "mlx_nibble":
                other = unit_of(module)
                assert other == unit or other in below, f"{path} imports {module}"


@pytest.mark.parametrize("unit", PYTHON_ORDER)
def test_the_files_of_a_folder_import_each_other_in_no_circle(unit):
    names = {
        ".".join(("mlx_nibble", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in files_of(unit)
    }
    graph = {}
    for name, path in names.items():
        # `from a import b` names the module a.b or something in a.
        found = imports_of(path) | {
            f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        graph[name] = found & names.keys() - {name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", files_of("quantize"), ids=lambda path: path.name)
def test_quantizers_are_functions_of_arrays(path):
    for module in imports_of(path):
        if module.split(".")[0] in ("mlx", "mlx_lm", "pathlib", "os"):
            raise AssertionError(f"{path.name} imports {module}")
        if module.startswith("mlx_nibble."):
            assert module.split(".")[1] in ("formats", "quantize", "numerics"), module


def test_only_the_folder_lm_imports_mlx_lm():
    for path in PACKAGE.rglob("*.py"):
        if path not in files_of("lm"):
            used = {m for m in imports_of(path) if m.split(".")[0] == "mlx_lm"}
            assert not used, f"{path.relative_to(ROOT)} imports {used}"


def test_python_and_the_extension_support_the_same_formats():
    assert _native.ext is not None
    known = {
        name: (list(mode.bits), list(mode.group_sizes))
        for name, mode in formats.MODES.items()
    }
    assert known == _native.ext.supported_forms()
    # GPUs have kernels for all of them.
    for name, mode in formats.MODES.items():
        for bits, group_size in itertools.product(mode.bits, mode.group_sizes):
            assert _native.ext.supports(mode.mlx_name, bits, group_size, gpu=True), name
    assert formats.SUPPORTED_BITS == formats.BITS[1:]


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


def test_the_same_mlx_versions_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    versions = project["tool"]["mlx-nibble"]["mlx-versions"]
    assert list(_native.MLX_VERSIONS) == versions
    required = [
        text.partition(";")[0].replace("[cpu]", "")
        for text in (
            *project["build-system"]["requires"],
            *project["project"]["dependencies"],
        )
        if re.match(r"mlx\W", text)
    ]
    assert required == 3 * [_native.REQUIREMENT]
    assert _native._BACKEND in project["project"]["dependencies"]
    # The range ends below the next version, which nobody knows yet.
    *release, patch = versions[-1].split(".")
    above = ".".join([*release, str(int(patch) + 1)])
    assert _native.REQUIREMENT == f"mlx>={versions[0]},<{above}"
    assert _native.ext is not None
    assert _native.ext.mlx_version() == _native.mlx_version


def test_one_package_version_everywhere():
    import mlx_nibble

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == mlx_nibble.__version__
    assert f"## [{mlx_nibble.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {mlx_nibble.__version__}\n" in citation


@pytest.mark.parametrize(
    ("name", "value"), [("NIBBLE_CPU_ISA", "abacus"), ("NIBBLE_NUM_THREADS", "-1")]
)
def test_a_wrong_setting_is_said_at_import_and_mlx_takes_over(name, value):
    code = "from mlx_nibble import ops; print(ops.supports('affine', 4, 64))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, name: value},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "False\n"
    assert name in result.stderr and f"'{value}'" in result.stderr

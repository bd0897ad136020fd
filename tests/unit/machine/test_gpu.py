"""Facts of the GPU, as macOS and MLX report them, and a Mac without a usable one."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from mlx_nibble.machine import gpu

# What MLX's build for macOS does where there is no device (metal.cpp, device.cpp).
NO_GPU = """
import mlx.core as mx

asked = []
def device_info(device=mx.cpu, of=mx.device_info):
    if device == mx.gpu:
        asked.append(device)
        raise RuntimeError("[metal::load_device] No Metal device available.")
    return of(device)

mx.metal.is_available = lambda: True
mx.device_info = device_info
import mlx_nibble
assert not asked, "the GPU was asked at import"
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", NO_GPU + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_mac_without_a_usable_gpu_imports_and_computes():
    code = """
from mlx_nibble import ops
w = mx.quantize(mx.ones((8, 64)))
print(ops.quantized_matmul(mx.ones((1, 64)), *w).tolist())
"""
    assert run(code) == f"{[[64.0] * 8]}\n"


@pytest.mark.parametrize("available", [True, False])
def test_without_a_usable_gpu_no_kernel_is_used(available):
    code = f"""
mx.is_available = lambda device: {available}
from mlx_nibble.machine import gpu, verdicts
assert gpu.info() == {{}} and gpu.facts()[1] is False
assert verdicts.Verdicts(None, None)("qmv_f16_f16_b4_g64") is False
"""
    run(code)


def test_bench_and_doctor_describe_a_mac_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path))
    code = """
from mlx_nibble.bench import machine
from mlx_nibble.machine.verdicts import Machine
assert machine.describe()["gpu"] is None
assert Machine.here().gpu == ""
"""
    run(code)


def tool(monkeypatch, **outputs: str) -> None:
    monkeypatch.setattr(gpu, "_output", lambda path, *_: outputs[path.split("/")[-1]])


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ('    "gpu-core-count" = 10\n', 10),
        ('"GPUConfigurationVariable" = {"num_cores"=8}\n"gpu-core-count" = 40', 40),
        ("", 0),
    ],
)
def test_the_core_count_is_the_system_s(monkeypatch, text, cores):
    tool(monkeypatch, ioreg=text)
    assert gpu.core_count() == cores


def test_a_tool_that_is_missing_or_fails_says_nothing():
    assert gpu._output("/no/such/tool") == ""
    assert gpu._output(sys.executable, "-c", "print(1); exit(1)") == ""
    assert gpu._output(sys.executable, "-c", "print(1)") == "1\n"


@pytest.mark.parametrize(
    ("architecture", "system", "wheel", "expected"),
    [
        ("applegpu_g17s", "26.2", "macosx_26_0_arm64", True),
        ("applegpu_g17g", "27.0.1", "macosx_26_0_arm64", True),
        ("applegpu_g16s", "26.2", "macosx_26_0_arm64", False),
        ("applegpu_g17p", "26.2", "macosx_26_0_arm64", False),
        ("applegpu_g18p", "26.2", "macosx_26_0_arm64", True),
        ("applegpu_g17s", "26.1", "macosx_26_0_arm64", False),
        ("applegpu_g17s", "15.6", "macosx_15_0_arm64", False),
        ("applegpu_g17s", "26.2", "macosx_14_0_arm64", False),
        ("applegpu_g17s", "26.2", None, False),
        ("", "26.2", "macosx_26_0_arm64", False),
    ],
)
def test_mlx_has_neural_kernels_where_its_own_rule_says_so(
    monkeypatch, architecture, system, wheel, expected
):
    class Distribution:
        def read_text(self, name):
            return f"Wheel-Version: 1.0\nTag: py3-none-{wheel}\n"

    def distribution(name):
        assert name == "mlx-metal"
        if wheel is None:
            raise PackageNotFoundError
        return Distribution()

    monkeypatch.setattr(gpu.importlib.metadata, "distribution", distribution)
    tool(monkeypatch, sysctl=system + "\n")
    assert gpu.has_neural_kernels(architecture) is expected


def test_tf32_is_mlx_s_setting(monkeypatch):
    tool(monkeypatch, ioreg="", sysctl="")
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    assert gpu.facts() == (0, False, True)
    for value, expected in ("1", True), ("0", False):
        monkeypatch.setenv("MLX_ENABLE_TF32", value)
        assert gpu.facts() == (0, False, expected)

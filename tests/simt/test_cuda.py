"""Our kernels and MLX's compile for an NVIDIA GPU from the same text."""

from __future__ import annotations

import ctypes

import pytest

from tests.simt import cuda_build, mlx_cases, mlx_kernels, plans

needs_nvrtc = pytest.mark.skipif(
    cuda_build.nvrtc() is None, reason="the package nvidia-cuda-nvrtc is not installed"
)


def one_of_each_family() -> list[str]:
    first: dict[str, str] = {}
    for kernel in plans.instances():
        if "_f16_f16_b4_g64_" in kernel + "_":
            first.setdefault(plans.unit_name(kernel), kernel)
    return list(first.values())


@needs_nvrtc
@pytest.mark.parametrize("kernel", one_of_each_family())
def test_a_kernel_of_each_family_compiles(kernel: str) -> None:
    cubin = cuda_build.compile_cubin(cuda_build.unit_of([kernel]))
    assert cubin.startswith(b"\x7fELF")
    assert kernel.encode() in cubin


@needs_nvrtc
@pytest.mark.parametrize(
    "kernel", [name for name in mlx_kernels.WITNESSES if name.startswith("affine_")]
)
def test_a_kernel_of_mlx_compiles(kernel: str) -> None:
    problems = dict(mlx_cases.of_format("float16", 4, 64))
    instance = mlx_kernels.instance(kernel, problems[kernel])
    cubin = cuda_build.compile_cubin(cuda_build.mlx_unit({instance}))
    assert cubin.startswith(b"\x7fELF")
    assert instance[0].encode() in cubin


def test_the_launcher_says_what_is_missing_without_a_gpu() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        from tests.simt import cuda_run

        with pytest.raises(OSError, match="libcuda"):
            cuda_run.Driver()

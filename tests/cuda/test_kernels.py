"""NVRTC compiles every form of the kernels for CUDA, for all architectures."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.cuda.nvrtc import ARCHITECTURES, compile_kernel
from tests.simt import cuda_build, plans

pytestmark = pytest.mark.skipif(
    cuda_build.nvrtc() is None, reason="the package nvidia-cuda-nvrtc is not installed"
)

KERNELS = plans.instances(cuda=True)


def tiles(pattern: str) -> list[str]:
    return [kernel for kernel in KERNELS if re.search(pattern, kernel)]


ONE_TILE = "bm8_bn16_wk8_f4_ahead1_o2$"
# Every tile at the usual format; at one tile, every width, both types, all groups.
CHOSEN = [
    *tiles(r"^cuda_qmm_skinny_bf16_bf16_b4_g64_"),
    *tiles(r"^cuda_qmm_skinny_bf16_bf16_b\d_g64_" + ONE_TILE),
    *tiles(r"^cuda_gather_.*_f16_f16_b[36]_g32_" + ONE_TILE),
    *tiles(r"^cuda_gather_.*_f16_f16_b[58]_g128_" + ONE_TILE),
    *tiles(r"^cuda_(qmm_skinny_bf16|gather_sorted_f16)_e.*" + ONE_TILE),
    *tiles(r"^cuda_\w*swiglu_bf16_bf16_b4_g64_"),
    *tiles(r"^cuda_dequantize_(f16_f16_b\d_g32|bf16_bf16_b4_g128|b?f16_e)"),
]


@pytest.mark.parametrize("kernel", dict.fromkeys(CHOSEN))
def test_a_kernel_compiles(kernel: str) -> None:
    cubin, _ = compile_kernel(plans.kernel_source(kernel), "sm_90")
    assert cubin.startswith(b"\x7fELF")
    assert kernel.encode() in cubin


@pytest.mark.parametrize(
    ("architecture", "kernel"),
    list(
        itertools.product(
            ARCHITECTURES,
            ["cuda_contiguous", *tiles(r"^cuda_qmm.*_bf16_b8_g64_" + ONE_TILE)],
        )
    ),
)
def test_a_kernel_compiles_for_every_architecture(
    architecture: str, kernel: str
) -> None:
    cubin, _ = compile_kernel(plans.kernel_source(kernel), architecture)
    assert cubin.startswith(b"\x7fELF")


@pytest.mark.parametrize("kernel", tiles(r"^cuda_qmm_wgmma_"))
def test_a_kernel_of_hopper_compiles_without_spilled_registers(kernel: str) -> None:
    cubin, log = compile_kernel(plans.kernel_source(kernel), "sm_90a")
    assert kernel.encode() in cubin
    assert re.findall(r"(\d+) bytes spill", log) == ["0", "0"]
    # The assembler says so if it makes products wait for each other.
    assert "wgmma" not in log.replace(kernel, "")


@pytest.mark.parametrize("kernel", tiles(r"^cuda_qmm.*_bf16_b4_g64_bm8_.*_o[12]$"))
def test_kernels_of_one_row_spill_no_register_unless_told_to(kernel: str) -> None:
    _, log = compile_kernel(plans.kernel_source(kernel), "sm_90")
    assert re.findall(r"(\d+) bytes spill", log) == ["0", "0"]

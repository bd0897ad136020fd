"""Arrays of kernels become registers, because every function is inlined (shared.h)."""

from __future__ import annotations

import re

import pytest

from tests.simt import build, plans

# The loaders and sums of each family, at a width whose codes straddle words, too.
KERNELS = [
    "qmv_f16_f16_b3_g64",
    "qmv_multi_bf16_bf16_b5_g64_r8",
    "qmm_f16_f16_b4_g64_bm64_bn64_bk32_wm2_wn2",
    "qmm_bf16_bf16_b6_g64_bm32_bn32_bk32_wm2_wn2",
    "qmm_half_bf16_bf16_b4_g64_bm64_bn64_bk32_wm2_wn2",
    "qmm_skinny_f16_f16_b5_g64_bm32_bn32_wk8",
    "qmm_splitk_f16_f16_b4_g64_bm64_bn64_bk32_wm2_wn2",
    "qmm_n_f16_f16_b3_g64_bm32_bn512_bk8_wm1_wn8",
    "gather_qmm_f16_f16_b4_g64_bm16_bn32_bk32_wm1_wn2",
    "joint_qmm_skinny_f16_f16_b4_g64_bm8_bn32_wk8",
    "swiglu_f16_f16_b5_g64",
    "qvm_f16_f16_b4_g64",
    "qmv_f16_e8m0_b4_g32_mxfp4",
    "qmm_skinny_bf16_e4m3_b4_g16_nvfp4_bm32_bn32_wk8",
    "qmm_f16_e8m0_b8_g32_mxfp8_bm64_bn64_bk32_wm2_wn2",
]


def functions(code: str) -> list[str]:
    """Return LLVM's text of each function of ours, without the bench's wrapper."""
    return [
        body
        for body in re.findall(r"^define .*?^}", code, re.M | re.S)
        if "@_ZN6nibble" in body.split("\n", 1)[0]
    ]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_one_function_without_arrays_in_memory(kernel: str) -> None:
    (body,) = functions(build.optimised(plans.kernel_source(kernel)))
    assert " = alloca " not in body


def test_without_the_macro_there_are_calls_and_arrays_in_memory() -> None:
    text = plans.kernel_source(KERNELS[2])
    bodies = functions(build.optimised(text, inline=False))
    assert len(bodies) > 1
    assert any(" = alloca " in body for body in bodies)

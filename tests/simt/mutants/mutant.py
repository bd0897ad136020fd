"""A mutant, and the kernels that many of them change."""

from __future__ import annotations

from dataclasses import dataclass

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
QVM = "qvm_f16_f16_b4_g64"
QMM_N = "qmm_n_f16_f16_b4_g32_bm32_bn128_bk32_wm1_wn4"
HALF = "qmm_half_bf16_bf16_b4_g32_bm32_bn32_bk32_wm2_wn2"


@dataclass(frozen=True)
class Mutant:
    """A kernel with each `old` in its text replaced by `new`."""

    what: str
    kernel: str
    old: str
    new: str


def qmv(what: str, old: str, new: str, types: str = "f16_f16") -> Mutant:
    return Mutant(what, f"qmv_{types}_b4_g64", old, new)


def quad(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, "qmv_quad_f16_f16_b4_g32", old, new)


def multi(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, "qmv_multi_f16_f16_b4_g64_r2", old, new)


def joint(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, "joint_qmv_f16_f16_b4_g64", old, new)


def qmm(what: str, old: str, new: str, format: str = "b4_g64") -> Mutant:
    return Mutant(what, f"qmm_f16_f16_{format}_bm32_bn32_bk32_wm2_wn2", old, new)


def skinny(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, "qmm_skinny_f16_f16_b4_g64_bm16_bn32_wk8", old, new)


def qmm3(what: str, old: str, new: str) -> Mutant:
    return qmm(what, old, new, "b3_g32")


def skinny5(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, "qmm_skinny_f16_f16_b5_g64_bm16_bn32_wk8", old, new)


def of(kernel: str, what: str, old: str, new: str) -> Mutant:
    return Mutant(what, kernel, old, new)

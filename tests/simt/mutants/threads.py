"""Mutants: barriers, lanes, and the parts of a split K."""

from __future__ import annotations

from tests.simt.mutants.mutant import BARRIER, HALF, QVM, of, qmm, qmv, skinny

SPLITK = "qmm_splitk_f16_f16_b4_g64_bm64_bn64_bk32_wm2_wn2"
SPLITK_SUM = "qmm_splitk_sum_f16_f16_b4_g64"

MUTANTS = [
    # Threads.
    qmv("every lane stores", "lane == 0 && row < N", "row < N"),
    qmm(
        "no barrier before the loop",
        f"memory + BM * kXStride, begin);\n  {BARRIER}",
        "memory + BM * kXStride, begin);\n",
    ),
    qmm("no barrier in the loop", f"k + BK);\n      {BARRIER}", "k + BK);\n"),
    qmm(
        "barrier of the wrong memory",
        "mem_flags::mem_threadgroup",
        "mem_flags::mem_device",
    ),
    qmm(
        "barrier of the wrong scope",
        f"k + BK);\n      {BARRIER}",
        "k + BK);\n      simdgroup_barrier(mem_flags::mem_threadgroup);",
    ),
    qmm("stale stage", "at = kStage - at;", ""),
    qmm(
        "a barrier that some reach",
        f"k + BK);\n      {BARRIER}",
        f"k + BK);\n      if (sgid > 0) {BARRIER}",
    ),
    skinny(
        "too many write their sums",
        "sgid >= half_way && sgid < 2 * half_way",
        "sgid >= half_way",
    ),
    skinny(
        "no barrier before the sums", f"    }}\n    {BARRIER}\n    if", "    }\n    if"
    ),
    skinny("no barrier after the sums", f"    }}\n    {BARRIER}\n  }}", "    }\n  }"),
    of(HALF, "a simdgroup tries again alone", "any != 0", "mine != 0"),
    of(
        HALF,
        "no barrier before the word",
        f"uint(flag));\n  {BARRIER}",
        "uint(flag));\n",
    ),
    of(
        HALF,
        "no barrier after the word",
        f"  {BARRIER}\n  return any",
        "  return any",
    ),
    of(
        QVM,
        "no barrier before the columns",
        f"    {BARRIER}\n    int column",
        "    int column",
    ),
    of(QVM, "both halves store", "if (lane < NIBBLE_QVM_LANES)", ""),
    # Parts of a split K.
    of(SPLITK, "every part the first", "int(tgid.z) * params.part", "0"),
    of(
        SPLITK,
        "a part runs into the next",
        "min(begin + params.part, K)",
        "min(begin + params.part + BK, K)",
    ),
    of(
        SPLITK,
        "the last part runs past K",
        "min(begin + params.part, K)",
        "begin + params.part",
    ),
    of(
        SPLITK,
        "sums of all parts in one place",
        "sums + size_t(tgid.z) * size_t(M) * size_t(N)",
        "sums",
    ),
    of(
        SPLITK,
        "the first block of K for that of a part",
        "w_loader.fetch(begin)",
        "w_loader.fetch(0)",
    ),
    of(
        SPLITK_SUM,
        "a part never added",
        "part < params.parts",
        "part < params.parts - 1",
    ),
    of(SPLITK_SUM, "a part too many", "part < params.parts", "part <= params.parts"),
    of(
        SPLITK_SUM,
        "sums in the type of y",
        "float sum = sums[at]",
        "T sum = T(sums[at])",
    ),
    of(
        SPLITK_SUM,
        "an element past the row",
        "column >= params.N",
        "column > params.N",
    ),
]

"""Lists small problems that cover every kernel that a plan can name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import chain

from mlx_nibble.formats import MODES

from . import numbers, plans
from .cases import Case, dequantize, gather, gradient, joint, matmul, swiglu
from .plans import GatherProblem, Problem

# Not a multiple of any tile or of a simdgroup's rows.
_N = 37
# Groups in K: three; one and twenty for kernels of very short and very long rows.
_GROUPS = (3, 1, 20)
# The number of rows of each kernel that is made for one number, and edges of tiles.
_ROWS = (1, 2, 3, 4, 5, 6, 8, 13, 37)
_EXPERTS = 3
# (batch, rows, sorted) of gathered products: vectors, then rows of tiles.
_GATHERED = ((4, 1, False), (2, 5, False), (2, 13, False), (2, 29, False))
# Factors of the first row of x and of w: inside the range of half, and outside.
_FIRSTS = ((1.0, 1.0), (2.0**20, 1.0), (2.0**-24, 1.0), (1.0, 2.0**20), (1.0, 2.0**-24))
# (rows, rows of w) of gradients: rows of w that four lanes read at once, or not.
_GRADIENTS = ((5, 37), (13, 36))
# The fields of a product by index that one of a batch has, too.
_SHARED = {f.name for f in fields(Problem)} & {f.name for f in fields(GatherProblem)}
# With 3 experts: more than one tile of 16 rows each, and of 32.
_SORTED = ((70, 1, True), (151, 1, True))


def lengths(p: Problem) -> list[int]:
    """Return the lengths of a row: groups, of 32 columns or more."""
    return [groups * max(p.group_size, 32) for groups in _GROUPS]


def of_unit(unit: str, kernels: Sequence[str]) -> Iterator[Case]:
    """Yield a case for each of these kernels of a unit of plans.unit_names()."""
    left = set(kernels)
    for kernel, case in _of_unit(unit):
        if kernel in left:
            left.remove(kernel)
            yield case()
        if not left:
            return


def kernels_of_unit(unit: str) -> set[str]:
    """Return the kernels of a unit that have a case."""
    missing = set(plans.kernels_of_unit(unit))
    found = set()
    for kernel, _ in _of_unit(unit):
        found.add(kernel)
        if missing <= found:
            break
    return found


def _of_unit(unit: str) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield (kernel, maker of its case) for each kernel and size of a unit."""
    family, dtype, scale_dtype, bits = unit.rsplit("_", 3)
    base = Problem(
        dtype=numbers.LONG[dtype],
        scale_dtype=numbers.LONG[scale_dtype],
        bits=int(bits[1:]),
    )
    for mode, info in MODES.items():
        if base.bits not in info.bits or not plans.has_scales(mode, base.scale_dtype):
            continue
        for group_size in info.group_sizes:
            p = replace(base, group_size=group_size, mode=mode)
            for K in lengths(p):
                for kernel, case in _of_format(family, replace(p, N=_N, K=K)):
                    if plans.unit_name(kernel) == unit:
                        yield kernel, case


def of_kernel(kernel: str) -> Iterator[Case]:
    """Yield cases of one kernel, for every size of which it is a candidate."""
    family, dtype, scale_dtype, bits, group = plans.unit_name(kernel).rsplit("_", 3) + [
        kernel[len(plans.unit_name(kernel)) + 2 :].split("_")[0]
    ]
    p = Problem(
        N=_N,
        dtype=numbers.LONG[dtype],
        scale_dtype=numbers.LONG[scale_dtype],
        bits=int(bits[1:]),
        group_size=int(group),
        mode=plans.mode_of(kernel),
    )
    for K in lengths(p):
        for name, case in _of_format(family, replace(p, K=K)):
            if name == kernel:
                yield case()


def _of_format(family: str, base: Problem) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield (kernel, maker of its case) for launches that may be of this family."""
    N, K = base.N, base.K
    if family.endswith("group_gradient"):
        yield from _of_gradients(family, base)
        return
    if family.startswith("gather"):
        shapes = (*_GATHERED, *_SORTED)
        for B, M, in_order in shapes:
            g = GatherProblem(
                B=B,
                M=M,
                N=N,
                K=K,
                experts=_EXPERTS,
                dtype=base.dtype,
                scale_dtype=base.scale_dtype,
                bits=base.bits,
                group_size=base.group_size,
                mode=base.mode,
                sorted=in_order,
            )
            for form in (g, replace(g, transpose=False)):
                for launch in plans.plan_gather(form) or ():
                    yield launch.kernel, lambda g=form, launch=launch: gather(g, launch)
            for launch in plans.plan_swiglu(g) or () if M == 1 else ():
                yield launch.kernel, lambda g=g, launch=launch: swiglu(g, launch)
        return
    if family.startswith("joint"):
        for M in (1, 2, 3, 4, 5, 6, 8, 13, 29):
            p = replace(base, M=M)
            # Three products, two of them with a bias; or two without.
            three = (p, replace(p, N=9, bias=True), replace(p, N=_N - 1, bias=True))
            products = three if K == lengths(base)[0] else three[:1] * 2
            for launch in plans.plan_joint(products) or ():
                yield (
                    launch.kernel,
                    lambda products=products, launch=launch: joint(products, launch),
                )
        return
    for M in _ROWS:
        for transpose in (True, False):
            # With few rows a batch costs little: use each weight matrix twice.
            batch = {"batch_size": 4, "batch_count": 2}
            p = replace(base, M=M, N=N, transpose=transpose, **(batch if M < 3 else {}))
            # Addends at one length of a row only, so that tests cover both.
            split = family.startswith("qmm_splitk")
            if transpose and (split or base.K == lengths(base)[0]):
                p = replace(p, bias=True, residual=True)
            if family == "qmm_half":
                yield from _of_half(replace(p, half_tiles=True))
                continue
            for launch in chain.from_iterable(plans.candidates(p)):
                yield launch.kernel, lambda p=p, launch=launch: matmul(p, launch)
    p = replace(base, M=N, N=N, K=K)
    for launch in plans.plan_dequantize(p) or ():
        yield launch.kernel, lambda p=p, launch=launch: dequantize(p, launch)
    p = replace(base, M=1, N=N, K=K, batch_size=4, batch_count=2)
    for launch in plans.plan_swiglu(p) or ():
        yield launch.kernel, lambda p=p, launch=launch: swiglu(p, launch)


def _of_gradients(
    family: str, base: Problem
) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield cases of one matrix, of a batch or of experts; edges of 8 and 32 rows."""
    if base.K == lengths(base)[-1]:
        return  # no kernel needs a long row
    form = {name: getattr(base, name) for name in _SHARED}
    for transpose in (True, False):
        for M, N in _GRADIENTS:
            if family.startswith("gather"):
                p = GatherProblem(B=7, experts=_EXPERTS, **form)
            else:
                p = replace(base, M=M, batch_size=4 if M < 8 else 1)
                p = replace(p, batch_count=2 if M < 8 else 1)
            p = replace(p, M=M, N=N, transpose=transpose)
            for launch in plans.plan_gradient(p) or ():
                yield launch.kernel, lambda p=p, launch=launch: gradient(p, launch)


def _of_half(p: Problem) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield cases inside the range of half, then with a row of x or w outside."""
    for first_x, first_w in _FIRSTS:
        if first_w > 1 and p.scale_dtype == "float16":
            continue  # float16 scales end where half does
        if first_w != 1 and p.scale_dtype == "e4m3":
            continue  # scales of 8 bits end before
        for (launch,) in plans.candidates(p):
            yield (
                launch.kernel,
                lambda launch=launch, first_x=first_x, first_w=first_w: matmul(
                    p, launch, 0, first_x, first_w
                ),
            )

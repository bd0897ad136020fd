"""The checks of this bench catch every seeded mistake."""

from __future__ import annotations

import pytest

from tests.simt import build, lint, plans, problems
from tests.simt.executor import KernelError, Options
from tests.simt.mutants import MUTANTS, Mutant
from tests.simt.source import translate
from tests.simt.toolchain import CompileError


def catch(mutant: Mutant) -> str:
    """Return the check that catches the mutant; "" if none does."""
    source = plans.kernel_source(mutant.kernel)
    assert mutant.old in source, f"{mutant.what}: the kernel no longer has {mutant.old}"
    text = source.replace(mutant.old, mutant.new)
    if lint.lint_text(text):
        return "lint"
    # Most make wrong results, which a build without instruments shows at less cost.
    for instrumented in (False, True):
        try:
            library = build.compile_unit(translate(text), instrumented=instrumented)
        except CompileError:
            return "front end"
        for case in problems.of_kernel(mutant.kernel):
            try:
                case.check(Options(instrumented=instrumented), library)
            except KernelError as error:
                return error.findings[0].kind
            except AssertionError:
                return "oracle"
    return ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.what.replace(" ", "-"))
def test_no_mutant_survives(mutant: Mutant) -> None:
    assert catch(mutant), f"{mutant.kernel} with {mutant.what} passes every check"


@pytest.mark.parametrize("kernel", sorted({m.kernel for m in MUTANTS}))
def test_the_same_kernels_unharmed_pass(kernel: str) -> None:
    assert lint.lint_text(plans.kernel_source(kernel)) == []
    for case in problems.of_kernel(kernel):
        case.check(Options(instrumented=True))


def test_there_are_enough_of_them() -> None:
    assert len({m.what for m in MUTANTS}) == len(MUTANTS) >= 40

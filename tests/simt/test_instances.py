"""The kernels that plans can name run without findings and agree with the oracle.

Without NIBBLE_SIMT=all each family runs in every shape, every width of integers and
every mode of floats. Pairs of types, group sizes and symmetry take turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain

import pytest

from tests.simt import plans, problems, verdicts
from tests.simt.amount import FULL
from tests.simt.executor import Options, compile_planned


def chosen_units() -> list[str]:
    units = plans.unit_names()
    if FULL:
        return list(units)
    formats: dict[tuple[str, ...], list[str]] = {}
    for unit in units:
        family, _, scale_dtype, bits = unit.rsplit("_", 3)
        floats = scale_dtype if scale_dtype in plans.SCALE_DTYPES else ""
        formats.setdefault((family, floats, bits), []).append(unit)
    # Take the next pair for each, so that all pairs run.
    return [all_of[i % len(all_of)] for i, all_of in enumerate(formats.values())]


def chosen_kernels() -> dict[str, tuple[str, ...]]:
    """Return the kernels that run, by their unit of compilation."""
    return {
        unit: plans.kernels_of_unit(unit) if FULL else plans.representatives(unit, turn)
        for turn, unit in enumerate(chosen_units())
    }


KERNELS = chosen_kernels()


@pytest.mark.parametrize("unit", KERNELS)
def test_every_instance_runs(unit: str) -> None:
    kernels = KERNELS[unit]
    library = compile_planned(plans.unit(kernels), instrumented=True)

    def check_all() -> None:
        for case in problems.of_unit(unit, kernels):
            case.check(Options(instrumented=True))

    verdicts.once(unit, library.name, check_all)


@pytest.mark.skipif(FULL, reason="all of them run")
def test_every_group_size_and_mode_of_a_family_has_its_turn() -> None:
    def parts(kernels: Iterable[str]) -> set[tuple[str, str]]:
        """Return (family, part of a format's label) of all."""
        labels = ((plans.family_name(k), k[len(plans.unit_name(k)) :]) for k in kernels)
        pattern = re.compile(r"(_g\d+)(_sym)?(_[a-z]+fp\d)?.*")
        found = ((family, pattern.fullmatch(label)) for family, label in labels)
        return {(f, part) for f, match in found if match for part in match.groups("")}

    runs = chain.from_iterable(KERNELS.values())
    assert parts(runs) == parts(plans.instances())


@pytest.mark.parametrize("unit", KERNELS)
def test_no_instance_is_left_out(unit: str) -> None:
    assert problems.kernels_of_unit(unit) == set(plans.kernels_of_unit(unit))

"""The kernels that plans can name run without findings and agree with the oracle.

Without NIBBLE_SIMT=all each family runs in every width of integers and every mode of
floats, each with one pair of types.
"""

from __future__ import annotations

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


@pytest.mark.parametrize("unit", chosen_units())
def test_every_instance_runs(unit: str) -> None:
    library = compile_planned(plans.unit(unit), instrumented=True)

    def check_all() -> None:
        for case in problems.of_unit(unit):
            case.check(Options(instrumented=True))

    verdicts.once(unit, library, check_all)


@pytest.mark.parametrize("unit", chosen_units())
def test_no_instance_is_left_out(unit: str) -> None:
    planned = {k for k in plans.instances() if plans.unit_name(k) == unit}
    assert {case.launch.kernel for case in problems.of_unit(unit)} == planned

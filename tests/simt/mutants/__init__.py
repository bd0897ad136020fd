"""Mutants: our own kernels, each with one seeded mistake."""

from __future__ import annotations

from tests.simt.mutants import arithmetic, codes, gradients, places, threads
from tests.simt.mutants.mutant import Mutant

__all__ = ["MUTANTS", "Mutant"]

MUTANTS: list[Mutant] = [
    *codes.MUTANTS,
    *arithmetic.MUTANTS,
    *places.MUTANTS,
    *threads.MUTANTS,
    *gradients.MUTANTS,
]

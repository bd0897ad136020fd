"""Counts the instructions that a kernel executes: LLVM's, after its optimiser.

A counter is added to each basic block of the optimised kernel, with its loops unrolled
and every function inlined, as a GPU's compiler gets it. The executor runs this build.
Exchanges between lanes and 8x8 products are hardware on a GPU. They stay calls here,
and the executor counts them (executor.py).
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter

from . import build
from .executor import load
from .source import Unit

# LLVM's instructions and intrinsics by the pipeline of an Apple GPU that executes them.
# The rest is free: address arithmetic is part of a load, and so are conversions
# between half and float of the instruction that uses them.
FAST = "fadd fsub fmul fneg add sub and or xor icmp fcmp llvm.fma llvm.fmuladd".split()
FAST += "llvm.fabs llvm.smin llvm.smax llvm.umin llvm.umax llvm.minnum".split()
# A quarter of the rate: shifts, integer products, conversions from and to integers.
SLOW = "shl lshr ashr mul uitofp sitofp fptoui fptosi llvm.fshl llvm.fshr".split()
SLOW += "fdiv sdiv udiv srem urem".split()
CLASSES = {"fast": FAST, "slow": SLOW}

_CLASS_OF = {name: kind for kind, names in CLASSES.items() for name in names}
_FUNCTION = re.compile(r"^define .*?@([\w.]+)\(")
_LABEL = re.compile(r"^[\w.]+:")
_VALUE = re.compile(
    r"^\s+%[\w.]+ = (?:(?:tail|musttail|notail) )?(\w+)(?:.*?@(llvm\.\w+))?"
)
# Apple's registers have halves: the upper one needs no shift (applegpu of dougallj).
_UPPER_HALF = re.compile(r" = lshr .*, (?:splat \(i32 )?16\)?$")
_VECTOR = re.compile(r"^\s+%[\w.]+ = [\w ]*<(\d+) x ")
# Functions of the stand-in library for what is hardware on a GPU.
_HARDWARE = re.compile(r"2rt\d|multiply_in_lanes")


def _operations(line: str) -> int:
    """Return the operations of an instruction: one for each element of a vector."""
    elements = _VECTOR.match(line)
    return int(elements[1]) if elements else 1


def _class_of(line: str) -> str | None:
    """Return the class of one of LLVM's instructions; None if it is free.

    Integers of 64 bits count as others: those left are loop counters, which LLVM widens
    for an x86 only.
    """
    found = _VALUE.match(line)
    if not found or _UPPER_HALF.search(line):
        return None
    operation, intrinsic = found.groups()
    return _CLASS_OF.get(intrinsic or "" if operation == "call" else operation)


def instrument(text: str) -> tuple[str, list[Counter[str]]]:
    """Return LLVM's code with a counter in each block, and the blocks' instructions."""
    blocks: list[Counter[str]] = []
    out: list[str] = []
    counted = waiting = False

    def count(n: int) -> list[str]:
        at = f"getelementptr (i64, ptr @simt_counts, i64 {n})"
        return [
            f"  %simt.{n} = load i64, ptr {at}",
            f"  %simt.{n}.more = add i64 %simt.{n}, 1",
            f"  store i64 %simt.{n}.more, ptr {at}",
        ]

    for line in text.splitlines():
        function = _FUNCTION.match(line)
        if function:
            counted = not _HARDWARE.search(function[1])
        if counted and waiting and line.strip() and " = phi " not in line:
            out += count(len(blocks) - 1)
            waiting = False
        out.append(line)
        if counted and (function or _LABEL.match(line)):
            blocks.append(Counter())
            waiting = True
        elif counted and blocks and (kind := _class_of(line)):
            blocks[-1][kind] += _operations(line)
        if line == "}":
            counted = waiting = False
    out.append(f"@simt_counts = global [{len(blocks)} x i64] zeroinitializer")
    return "\n".join(out) + "\n", blocks


class Counted:
    """A build of a unit that counts the instructions of its lanes."""

    def __init__(self, unit: Unit) -> None:
        text, self._blocks = instrument(build.for_counting(unit))
        self.library: ctypes.CDLL = load(build.compile_counted(text))
        kind = ctypes.c_uint64 * len(self._blocks)
        self._counts = kind.in_dll(self.library, "simt_counts")

    def reset(self) -> None:
        ctypes.memset(self._counts, 0, ctypes.sizeof(self._counts))

    def instructions(self) -> dict[str, int]:
        """Return the instructions of all lanes since the last reset, by class."""
        total: Counter[str] = Counter(dict.fromkeys(CLASSES, 0))
        for times, block in zip(self._counts, self._blocks, strict=True):
            for kind, count in block.items():
                total[kind] += times * count
        return dict(total)

"""Plans of the CPU backend, as its runner returns them."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from tests.cpu.request import Request, allowed, request
from tests.cpu.runner import Runner


@dataclass(frozen=True)
class Profile:
    """CpuProfile of csrc/core/cpu_plan.h."""

    threads: int
    few_rows: int
    tile_rows: int
    packed_rows: int = 3
    packed_int8_rows: int = 32
    packed_int16_rows: int = 32
    int16: bool = False
    bfloat16: bool = False


@dataclass(frozen=True)
class KernelPlan:
    """CpuKernelPlan of csrc/core/cpu_plan.h."""

    activations: int  # an index of ACTIVATIONS
    few_rows: int
    whole_rows: int
    packed_rows: int
    prepared_rows: int


@dataclass(frozen=True)
class Plan(KernelPlan):
    """CpuPlan, and two facts about the candidates for the same problem."""

    block_rows: int
    columns: int
    depth: int
    all_supported: bool
    is_first: bool


@dataclass(frozen=True)
class GatherPlan(KernelPlan):
    """CpuGatherPlan, and the columns in a chunk of a wave."""

    block_rows: int
    wave_rows: int
    chunks: int
    columns: int


@dataclass(frozen=True)
class AttentionPlan:
    """CpuAttentionPlan of csrc/core/cpu_plan.h."""

    positions: int
    blocks: int
    split_keys: int
    splits: int
    chunks: int
    parallel: bool
    few_queries: int


def plan(backend: Runner, M: int, N: int, K: int, cpu: Profile, **form: Any) -> Plan:
    """Return the plan of x [M, K or N] times w [N, K]; `form` is that of _product."""
    asked = _product("plan", (M, N, K), **form)
    return Plan(*_ask(backend, Plan, asked, cpu))


def plan_gather(
    backend: Runner,
    B: int,
    shape: tuple[int, int, int],
    cpu: Profile,
    wave: tuple[int, int, int, int],
    experts: int = 1,
    **form: Any,
) -> GatherPlan:
    """Return the plan of B products of M rows; `shape` is (M, N, K).

    Args:
        wave: Groups, rows, rows of the largest group, matrices of sums.
        experts: Matrices of weights.
        form: Keywords of _product.
    """
    form |= {"batch_size": B, "batch_count": experts}
    asked = _product("plan_gather", shape, **form)
    return GatherPlan(*_ask(backend, GatherPlan, asked, cpu, wave))


def plan_attention(
    backend: Runner, shape: tuple[int, ...], cpu: Profile
) -> AttentionPlan:
    """Return the plan of an AttentionShape."""
    asked = request("plan_attention")
    return AttentionPlan(*_ask(backend, AttentionPlan, asked, cpu, shape))


def _product(
    kind: str,
    shape: tuple[int, int, int],
    *,
    transpose: bool,
    int8: bool,
    **more: Any,
) -> Request:
    """Return the request for a plan; `more` are a dtype and fields of Request."""
    M, N, K = shape
    more |= {"activations": allowed(int8), "transpose": transpose}
    return request(kind, M=M, N=N, K=K, **more)


def _ask(
    backend: Runner,
    result: type,
    asked: Request,
    cpu: Profile,
    more: tuple[int, ...] = (),
) -> list[int]:
    data = {
        "lhs": np.array(astuple(cpu), np.int32).tobytes(),
        "rhs": np.array(more, np.int32).tobytes(),
    }
    answer = backend.ask(asked, data, 4 * len(fields(result)))
    return np.frombuffer(answer, np.int32).tolist()

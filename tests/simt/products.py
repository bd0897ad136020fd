"""Plans and runs the project's operations, for tests of kernels."""

from __future__ import annotations

import numpy as np

from . import numbers
from .executor import Options, run
from .plans import Launch, Problem, plan_dequantize, plan_matmul


def matmul(
    problem: Problem,
    words: np.ndarray,
    scales: np.ndarray,
    biases: np.ndarray | None,
    x: np.ndarray,
    options: Options | None = None,
    launches: list[Launch] | None = None,
) -> np.ndarray:
    """Compute y [batch_size, M, N] by the planned kernels.

    Args:
        problem: Shapes, types and format.
        words: uint32 [batch_count, N, K * bits / 32].
        scales: Floats [batch_count, N, K / group_size], rounded to scale_dtype here;
            bytes in a mode of floats.
        biases: As scales; None in a mode without them.
        x: Floats [batch_size, M, K], rounded to dtype here.
        options: Options of the run.
        launches: One of candidates(problem); by default the plan of core.

    Returns:
        Values of type `dtype`; float32 if that is bfloat16.
    """
    options = options or Options()
    launches = launches or plan_matmul(problem, options.device)
    columns = problem.N if problem.transpose else problem.K
    shape = (problem.batch_size, problem.M, columns)
    operands = {"w": words, "x": numbers.encode(x, problem.dtype)}
    return _run_all(launches, problem, operands, scales, biases, shape, options)


def dequantize(
    problem: Problem,
    words: np.ndarray,
    scales: np.ndarray,
    biases: np.ndarray | None,
    options: Options | None = None,
) -> np.ndarray:
    """Compute w_hat [M, K]; arguments and result are as in matmul()."""
    options = options or Options()
    launches = plan_dequantize(problem, options.device)
    shape = (problem.M, problem.K)
    return _run_all(launches, problem, {"w": words}, scales, biases, shape, options)


def outputs_of(
    launch: Launch, shape: tuple[int, ...], dtype: str
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return the outputs of one launch of a plan for y [shape]: y, or partial sums."""
    if launch.sums_bytes:
        return {"sums": ((launch.sums_bytes // 4,), numbers.STORAGE["float32"])}
    return {"out": (shape, numbers.STORAGE[dtype])}


def _run_all(
    launches: list[Launch] | None,
    problem: Problem,
    operands: dict[str, np.ndarray],
    scales: np.ndarray,
    biases: np.ndarray | None,
    shape: tuple[int, ...],
    options: Options,
) -> np.ndarray:
    if launches is None:
        raise ValueError(f"[simt] no kernel of ours computes {problem}")
    operands["scales"] = numbers.encode(scales, problem.scale_dtype)
    if biases is not None:
        operands["biases"] = numbers.encode(biases, problem.scale_dtype)
    written: dict[str, np.ndarray] = {}
    for launch in launches:
        outputs = outputs_of(launch, shape, problem.dtype)
        written |= run(launch, operands | written, outputs, options).outputs
    return numbers.decode(written["out"], problem.dtype)

"""The bench catches each deliberately wrong kernel of bad/."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests import simt
from tests.simt.toolchain import BENCH

THREADS = 128
A = np.arange(THREADS, dtype=np.float32)

# kernel -> kind of the finding, and a pattern of its message. {here} is the place that
# the file marks.
EXECUTION = {
    "divergent_barrier": ("divergence", "while .* wait for threadgroup_barrier"),
    "barrier_in_a_branch": ("divergence", "64 have returned, 64 wait for .*{here}"),
    "exit_before_barrier": ("divergence", "28 have returned, 100 wait for .*{here}"),
    "divergent_simd_operation": ("divergence", "simd reduction|simd shuffle"),
    "exit_before_simd_operation": ("divergence", "{here} is reached by 4 of 32 lanes"),
    "reads_past_the_end": ("out of bounds", "byte 512 of a, .*{here}.*thread 127"),
    "writes_before_the_start": ("out of bounds", "a write at byte -4 of out"),
    "writes_to_its_input": ("write to input", "a write at byte .* of a,.*{here}"),
    "overruns_threadgroup_memory": ("out of bounds", "byte 512 of threadgroup"),
    "misaligned_vector": ("misaligned", "{here}"),
    "leaves_outputs_unwritten": ("unwritten", "1 of 128 elements of out, .*77"),
    "too_much_threadgroup_memory": ("limits", "32772 bytes"),
    "too_much_stack": ("stack overflow", "a thread used over 256 KB"),
}
MEMORY = {
    "missing_barrier": ("race", "{here}"),
    "barrier_of_the_wrong_memory": ("race", "read at byte .*{here}"),
    "barrier_of_no_memory": ("race", "{here}"),
    "barrier_of_the_wrong_scope": ("race", "{here}"),
    "shuffle_is_no_barrier": ("race", "{here}"),
    "reuses_memory_too_early": ("race", "a write .*unordered with a read.*{here}"),
    "reads_what_nobody_wrote": ("uninitialised", "byte 20 of .*{here}.*thread 5"),
    "accumulates_onto_nothing": ("uninitialised", "of out, .*{here}"),
    "two_threads_one_output": ("race", "{here}"),
    "two_threadgroups_one_output": ("race", "of another threadgroup.*{here}"),
    "one_value_by_many_threads": ("race", "{here}"),
    "reads_one_past_an_odd_end": ("out of bounds", "byte 13 of odd.*{here}"),
}

# Kernels with a float of threadgroup memory for each thread.
SHARED = {
    "correct",
    "overruns_threadgroup_memory",
    "missing_barrier",
    "barrier_of_the_wrong_memory",
    "barrier_of_no_memory",
    "barrier_of_the_wrong_scope",
    "shuffle_is_no_barrier",
    "reuses_memory_too_early",
    "reads_what_nobody_wrote",
    "correct_rounds",
    "correct_neighbours",
    "correct_bytes",
}


def place(file: str, kernel: str) -> str:
    """Return file:line of the mark in a kernel."""
    text = (BENCH / "bad" / file).read_text()
    mark = text.find("// here", text.index(f"void {kernel}("))
    return f"{file}:{text.count(chr(10), 0, mark) + 1}"


def launch(kernel: str) -> simt.Launch:
    odd = kernel == "reads_one_past_an_odd_end"
    return simt.Launch(
        kernel=kernel,
        threadgroups=(2 if kernel == "two_threadgroups_one_output" else 1, 1, 1),
        threads=(THREADS, 1, 1),
        buffers=("a", "out", "odd") if odd else ("a", "out"),
        threadgroup_bytes=4 * THREADS if kernel in SHARED else 0,
    )


def execute(
    file: str, what: simt.Launch, options: simt.Options | None = None
) -> np.ndarray:
    options = options or simt.Options()
    path = BENCH / "bad" / file
    library = simt.compile_metal(path, instrumented=options.instrumented)
    operands = {"a": A, "odd": np.zeros(13, np.int8)}
    outputs = {"out": ((THREADS,), np.dtype(np.float32))}
    return simt.run(what, operands, outputs, options, library).outputs["out"]


def assert_caught(
    file: str, kernel: str, kind: str, message: str, options: simt.Options
) -> None:
    message = message.replace("{here}", place(file, kernel))
    with pytest.raises(simt.KernelError, match=message) as caught:
        execute(file, launch(kernel), options)
    assert caught.value.kernel == kernel
    assert kind in {finding.kind for finding in caught.value.findings}


@pytest.mark.parametrize("instrumented", [False, True], ids=["plain", "watched"])
@pytest.mark.parametrize("kernel", EXECUTION)
def test_every_build_catches(kernel: str, instrumented: bool) -> None:
    options = simt.Options(instrumented=instrumented)
    assert_caught("execution.metal", kernel, *EXECUTION[kernel], options)


@pytest.mark.parametrize("kernel", MEMORY)
def test_the_instrumented_build_catches(kernel: str) -> None:
    for seed in range(3):  # whatever the order in which the threads run
        options = simt.Options(seed=seed, instrumented=True)
        assert_caught("memory.metal", kernel, *MEMORY[kernel], options)


def test_the_bench_survives_what_it_catches() -> None:
    with pytest.raises(simt.KernelError):
        execute("execution.metal", launch("reads_past_the_end"))
    result = execute("execution.metal", launch("correct"))
    np.testing.assert_array_equal(result, A[::-1])


CORRECT = {
    "correct_rounds": 2 * A[::-1],
    "correct_neighbours": A[np.arange(THREADS) ^ 1],
    "correct_bytes": A[::-1],
    "correct_quads": A.reshape(-1, 4)[:, ::-1].ravel() + 1000 * A[1::4].repeat(4),
}


@pytest.mark.parametrize("kernel", CORRECT)
@pytest.mark.parametrize("instrumented", [False, True], ids=["plain", "watched"])
def test_a_correct_kernel_is_correct_in_every_order(
    kernel: str, instrumented: bool
) -> None:
    for seed in range(10):
        options = simt.Options(seed=seed, instrumented=instrumented)
        result = execute("memory.metal", launch(kernel), options)
        np.testing.assert_array_equal(result, CORRECT[kernel])


def test_limits_of_the_device_are_limits() -> None:
    what = launch("correct")
    with pytest.raises(simt.KernelError, match="2048 threads"):
        execute("execution.metal", dataclasses.replace(what, threads=(2048, 1, 1)))
    with pytest.raises(simt.KernelError, match="40000 bytes"):
        execute("execution.metal", dataclasses.replace(what, threadgroup_bytes=40000))


def test_partial_simdgroups_are_an_option() -> None:
    what = launch("exit_before_simd_operation")
    result = execute("execution.metal", what, simt.Options(partial_simdgroups=True))
    assert result[96] == 96 + 97 + 98 + 99
    assert (result[100:] == 0).all()


def test_redundant_writes_are_an_option() -> None:
    options = simt.Options(instrumented=True, redundant_writes=True)
    result = execute("memory.metal", launch("one_value_by_many_threads"), options)
    np.testing.assert_array_equal(result, A)
    with pytest.raises(simt.KernelError, match="race"):
        execute("memory.metal", launch("two_threads_one_output"), options)

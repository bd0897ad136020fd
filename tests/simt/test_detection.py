"""The bench is tested: each deliberately wrong kernel is caught, by its name."""

from __future__ import annotations

import numpy as np
import pytest

from tests import simt
from tests.simt.toolchain import BENCH

THREADS = 128
# Kernels that take a float of threadgroup memory for each thread.
SHARED = {"correct", "overruns_threadgroup_memory"}

# kernel -> kind of the finding, and what its message must say. {here} stands for the
# place that the file marks.
EXECUTION = {
    "divergent_barrier": ("divergence", "while .* wait for threadgroup_barrier"),
    "barrier_in_a_branch": ("divergence", "64 have returned, 64 wait for .*{here}"),
    "exit_before_barrier": ("divergence", "28 have returned, 100 wait for .*{here}"),
    "divergent_simd_operation": ("divergence", "simd reduction|simd shuffle"),
    "exit_before_simd_operation": ("divergence", "{here} is reached by 4 of 32 lanes"),
    "reads_past_the_end": (
        "out of bounds",
        "read at byte 512 of a.*{here}.*thread 127",
    ),
    "writes_before_the_start": ("out of bounds", "a write at byte -4 of out"),
    "writes_to_its_input": ("write to input", "a write at byte .* of a,.*{here}"),
    "overruns_threadgroup_memory": ("out of bounds", "byte 512 of threadgroup"),
    "misaligned_vector": ("misaligned", "{here}"),
    "leaves_outputs_unwritten": ("unwritten", "1 of 128 elements of out, .*77"),
    "too_much_threadgroup_memory": ("limits", "32772 bytes"),
    "too_much_stack": ("stack overflow", "a thread used over 256 KB"),
}


def place(file: str, kernel: str) -> str:
    """file:line of the mark in a kernel."""
    text = (BENCH / "bad" / file).read_text()
    mark = text.find("// here", text.index(f"void {kernel}("))
    return f"{file}:{text.count(chr(10), 0, mark) + 1}"


def launch(kernel: str, **changes: object) -> simt.Launch:
    fields = {
        "kernel": kernel,
        "threadgroups": (1, 1, 1),
        "threads": (THREADS, 1, 1),
        "buffers": ("a", "out"),
        "threadgroup_bytes": 4 * THREADS if kernel in SHARED else 0,
    }
    return simt.Launch(**(fields | changes))  # pyright: ignore[reportArgumentType]


def execute(
    kernel: str, options: simt.Options | None = None, **changes: object
) -> np.ndarray:
    a = np.arange(THREADS, dtype=np.float32)
    options = options or simt.Options()
    library = simt.compile_metal(
        BENCH / "bad" / "execution.metal", instrumented=options.instrumented
    )
    outputs = {"out": ((THREADS,), np.dtype(np.float32))}
    outcome = simt.run(launch(kernel, **changes), {"a": a}, outputs, options, library)
    return outcome.outputs["out"]


@pytest.mark.parametrize("kernel", EXECUTION)
def test_a_wrong_kernel_is_caught(kernel: str) -> None:
    kind, message = EXECUTION[kernel]
    message = message.replace("{here}", place("execution.metal", kernel))
    with pytest.raises(simt.KernelError, match=message) as caught:
        execute(kernel)
    assert caught.value.kernel == kernel
    assert caught.value.findings[0].kind == kind


def test_the_bench_survives_what_it_catches() -> None:
    with pytest.raises(simt.KernelError):
        execute("reads_past_the_end")
    np.testing.assert_array_equal(execute("correct"), np.arange(THREADS)[::-1])


def test_a_correct_kernel_is_correct_in_every_order() -> None:
    for seed in range(20):
        result = execute("correct", simt.Options(seed=seed))
        np.testing.assert_array_equal(result, np.arange(THREADS)[::-1])


def test_limits_of_the_device_are_limits() -> None:
    with pytest.raises(simt.KernelError, match="2048 threads"):
        execute("correct", threads=(2048, 1, 1))
    with pytest.raises(simt.KernelError, match="40000 bytes"):
        execute("correct", threadgroup_bytes=40000)


def test_partial_simdgroups_are_an_option() -> None:
    result = execute(
        "exit_before_simd_operation", simt.Options(partial_simdgroups=True)
    )
    assert result[96] == 96 + 97 + 98 + 99
    assert (result[100:] == 0).all()

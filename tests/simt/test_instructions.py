"""Instructions are counted as worked out by hand."""

from __future__ import annotations

import numpy as np

from tests.simt import executor, instructions
from tests.simt.plans import Launch
from tests.simt.source import translate

_KERNEL = """
#include <metal_stdlib>
using namespace metal;

[[kernel]] void sums(const device float* a [[buffer(0)]],
                     device float* out [[buffer(1)]],
                     const constant int& count [[buffer(2)]],
                     uint index [[thread_index_in_threadgroup]]) {
  float sum = 0.0f;
#pragma clang loop unroll(disable)
  for (int i = 0; i < count; ++i) {
    uint word = as_type<uint>(a[i]) & 0xffu;
    sum = fma(float(word), a[i], sum);
  }
  out[index] = simd_sum(sum);
}
"""


def counted(count: int) -> dict[str, int]:
    kernels = instructions.Counted(translate(_KERNEL, unroll=True))
    kernels.reset()
    launch = Launch("sums", (1, 1, 1), (32, 1, 1), ("a", "out", "count"))
    arrays = {
        "a": np.ones(count, np.float32),
        "count": np.array([count], np.int32),
    }
    outputs = {"out": ((32,), np.dtype(np.float32))}
    result = executor.run(launch, arrays, outputs, kernels=kernels.library)
    assert (result.outputs["out"] == 0).all()
    return kernels.instructions()


def test_a_loop_costs_its_instructions_for_each_lane() -> None:
    short, long = counted(8), counted(24)
    # A mask, an fma, and the counter of the loop with its test.
    assert long["fast"] - short["fast"] == 32 * 16 * 4
    # A conversion of an integer. The sum over the lanes is not arithmetic.
    assert long["slow"] - short["slow"] == 32 * 16


def test_each_block_has_one_counter() -> None:
    text = "define void @f(i32 %0) {\n  %2 = add i32 %0, 1\n  ret void\n}\n"
    instrumented, blocks = instructions.instrument(text)
    assert [dict(block) for block in blocks] == [{"fast": 1}]
    assert instrumented.count("load i64, ptr getelementptr") == 1
    hardware = text.replace("@f", "@_ZN2rt3sumEv")
    assert instructions.instrument(hardware)[1] == []

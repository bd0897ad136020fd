"""The strict front end and the lint refuse the same code as Apple's compiler."""

from __future__ import annotations

import pytest

from tests.simt import build, lint
from tests.simt.source import translate
from tests.simt.toolchain import BENCH, CompileError


def test_kernels_break_no_rule() -> None:
    lint.check_kernels()


def test_every_marked_line_is_an_offence_and_no_other() -> None:
    folder = BENCH / "bad" / "source"
    marks = {"no space", "program scope", "virtual", "recursion"}
    lines = (folder / "rules.h").read_text().splitlines()
    expected = {
        number
        for number, line in enumerate(lines, 1)
        if line.rpartition("// ")[2] in marks
    }
    offences = lint.lint(folder)
    assert {offence.line for offence in offences} == expected, offences


def test_own_rules_are_inlining_and_native_shuffles(tmp_path) -> None:
    (tmp_path / "rules.h").write_text("""#include <metal_stdlib>
using namespace metal;
NIBBLE_INLINE float good(float x) { return quad_shuffle(simd_shuffle_xor(x, 8), 1); }
inline float call(float x) { return x; }
NIBBLE_INLINE float varying(float x, ushort i) { return simd_shuffle(x, i); }
template <typename T>
NIBBLE_INLINE T dependent(T x, ushort i) { return simd_shuffle(x, i); }
struct Loader {
  float held;
  NIBBLE_INLINE Loader() : held(0.0f) {}
  void put(threadgroup float* to) const thread { *to = held; }
};
[[kernel]] void k1(device float* out [[buffer(0)]]) { out[0] = good(1.0f); }
""")
    assert lint.lint(tmp_path) == []
    found = lint.lint(tmp_path, own_rules=True)
    assert [offence.line for offence in found] == [4, 5, 7, 11]


# Code that the front end itself refuses, because address spaces are types there.
REFUSED = {
    "double": "double d = 1.0; out[0] = float(d);",
    "a device pointer as a thread one": "thread float* p = out; p[0] = 0.0f;",
    "a thread pointer as a device one": "float f; device float* p = &f; p[0] = f;",
    "a threadgroup pointer as a device one": "device float* p = shared; p[0] = 0.0f;",
    "a write to constant": "k[0] = 1.0f;",
    "an implicit bfloat": "bfloat b = 1.0f; out[0] = float(b);",
    "a bfloat assigned a float": "bfloat b(1.0f); b = out[0]; out[0] = float(b);",
    "an exception": "throw 1;",
    "min of mixed types": "out[0] = float(min(1, 2u));",
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_front_end_refuses(what: str) -> None:
    source = """#include <metal_stdlib>
using namespace metal;
[[kernel]] void k1(device float* out [[buffer(0)]], constant float* k [[buffer(1)]],
                   threadgroup float* shared [[threadgroup(0)]]) {
  %s
}
"""
    build.check_syntax(translate(source % "out[0] = k[0] + shared[0];"))
    with pytest.raises(CompileError):
        build.check_syntax(translate(source % REFUSED[what]))

"""Translates Metal source into C++ for OpenCL that clang compiles.

Three things in a Metal file are not C++: the attributes that bind a kernel's
parameters, its instantiations, and threadgroup variables inside functions. Each is
replaced in place, so lines keep their numbers. Messages of the compiler and of the
executor name the original file and line.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"[^\n]*$', re.M)
# A kernel's declaration, up to its parameters.
ENTRY = re.compile(r"(?:\[\[\s*kernel\b[^\]]*\]\]|\bkernel)\s+void\s+(\w+)\s*\(")
_ATTRIBUTE = re.compile(r"\[\[\s*(\w+)(?:\(\s*(\d+)\s*\))?\s*\]\]")
# An explicit instantiation with the name that the host uses.
INSTANCE = re.compile(
    r'template\s*\[\[\s*host_name\("(\w+)"\)\s*\]\]\s*\[\[\s*kernel\s*\]\]\s*'
    r"decltype\(([^;]+?)\)\s*\2\s*;"
)
_THREADGROUP_VARIABLE = re.compile(
    r"(?<=[;{}])(\s*)threadgroup\s+([\w:<>, ]+?)\s*\b(\w+)\s*((?:\[[^\]]*\])*)\s*;"
)
_FUNCTION_CONSTANT = re.compile(
    r"constant\s+(\w+)\s+(\w+)\s*\[\[\s*function_constant\(\d+\)\s*\]\]"
)
_UNROLL = re.compile(r"#pragma\s+(?:clang\s+loop\s+)?unroll\b[^\n]*")
_POINTER_SPECIALIZATION = re.compile(
    r"template\s*<[^<>]*>\s*struct\s+(\w+)<"
    r"(?:device|threadgroup|constant|thread)\s+\w+\s*\*>\s*\{[^{}]*\};"
)
_STRUCT = re.compile(r"\bstruct\s+(?:alignas\([^)]*\)\s*)?(\w+)")


@dataclass(frozen=True)
class Unit:
    """A text for clang, and the kernels that it exports."""

    text: str
    kernels: tuple[str, ...]


def flatten(
    paths: Sequence[Path], include_root: Path, leave_out: Set[str] = frozenset()
) -> str:
    """Return the files with their quoted includes pasted in, each once.

    #line directives keep the line numbers. Files named in `leave_out` are skipped.
    """
    seen: set[Path] = set()

    def paste(file: Path) -> str:
        seen.add(file)
        name = file.relative_to(include_root)
        text = file.read_text().replace("#pragma once", "")
        out = [f'#line 1 "{name}"\n']
        end = 0
        for include in _INCLUDE.finditer(text):
            out.append(text[end : include.start()])
            end = include.end()
            target = (include_root / include[1]).resolve()
            if not target.exists():
                target = (file.parent / include[1]).resolve()
            if target not in seen and target.name not in leave_out:
                out.append(paste(target))
            line = text.count("\n", 0, end) + 1
            out.append(f'#line {line} "{name}"')
        out.append(text[end:])
        return "".join(out) + "\n"

    wanted = [path.resolve() for path in paths]
    return "".join(paste(path) for path in wanted if path not in seen)


def rewrite(text: str, unroll: bool = False) -> tuple[str, dict[str, list[str]]]:
    """Return `text` as C++, and the bindings of its kernels by name."""
    text = _COMMENT.sub(_blank, text)
    # Unrolled loops keep arrays in registers on a GPU. Here they only take ten times
    # as long to compile.
    if not unroll:
        text = _UNROLL.sub("", text)
    text = _FUNCTION_CONSTANT.sub(r"constant \1 \2 = \1(1)", text)
    text = _without_thread_on_constructors(text)
    text = _THREADGROUP_VARIABLE.sub(_variable, text)
    return _bind(text)


def translate_for_cuda(text: str) -> Unit:
    """Translate `text` for NVRTC, with its loops unrolled."""
    text = _UNROLL.sub('_Pragma("unroll")', text)
    text = text.replace('"clang loop unroll(full)"', '"unroll"')
    text = text.replace('"clang loop unroll(disable)"', '"unroll 1"')
    text = _one_for_all_spaces(text)
    unit = translate(text)
    # NVRTC refuses attributes of other functions, which clang ignores.
    own = _ATTRIBUTE.sub(_blank, unit.text.split("\n", 1)[1])
    start = '#include "simt/entry_cuda.h"\n'
    return Unit(f"namespace unit {{\n{start}{own}\n}}\n", unit.kernels)


def translate(text: str, prologue: str = "", unroll: bool = False) -> Unit:
    """Translate `text`, one flat Metal source, into a unit of C++ for OpenCL.

    `prologue` comes first, before the stand-in library. `unroll` keeps the requests to
    unroll loops.
    """
    plain = [m[1] for m in ENTRY.finditer(text) if not _is_template(text, m.start())]
    text, binders = rewrite(text, unroll)
    exported: list[str] = []

    def entry(name: str, function: str) -> str:
        exported.append(name)
        kernel = re.sub(r"<.*", "", function, flags=re.S).split("::")[-1].strip()
        if kernel not in binders:
            raise ValueError(
                f"[simt] {name} must instantiate a kernel of the file but got {kernel}"
            )
        return f"SIMT_ENTRY({name}, (&{function}), {', '.join(binders[kernel])})"

    text = INSTANCE.sub(lambda m: entry(m[1], m[2]) + _newlines(m[0]), text)
    # A kernel without template parameters is its own instance.
    alone = "".join(entry(name, name) + "\n" for name in plain)
    return Unit(prologue + '#include "simt/entry.h"\n' + text + alone, tuple(exported))


def _newlines(text: str) -> str:
    return "\n" * text.count("\n")


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def _variable(m: re.Match[str]) -> str:
    before, kind, name, dimensions = m.groups()
    site = zlib.crc32(f"{m.start()} {name}".encode()) & 0x7FFFFFFF
    call = (
        f"SIMT_THREADGROUP_VARIABLE({site}, SIMT_TYPE({kind}), {name}, {dimensions});"
    )
    return before + call + _newlines(m[0][len(before) :])


def _bind(text: str) -> tuple[str, dict[str, list[str]]]:
    """Blank the attributes of every kernel; return the bindings by kernel."""
    binders: dict[str, list[str]] = {}
    out, end = [], 0
    for kernel in ENTRY.finditer(text):
        close = _closing(text, kernel.end())
        parameters = text[kernel.end() : close]
        binders[kernel[1]] = [_binder(p, i) for i, p in enumerate(_split(parameters))]
        head = re.sub(r"\[\[.*?\]\]", _blank, kernel[0], flags=re.S)
        out += [text[end : kernel.start()], head, _ATTRIBUTE.sub(_blank, parameters)]
        end = close
    return "".join([*out, text[end:]]), binders


def _binder(parameter: str, position: int) -> str:
    attribute = _ATTRIBUTE.search(parameter)
    if not attribute:
        # Metal binds a pointer without an index by its position.
        return f"simt::buffer<{position}>"
    kind, index = attribute.groups()
    if kind == "buffer":
        return f"simt::buffer<{index}>"
    if kind == "threadgroup":
        return f"simt::threadgroup_memory<{index}>"
    return f"simt::{kind}"


def _is_template(text: str, start: int) -> bool:
    text = _COMMENT.sub(_blank, text[:start])
    return bool(re.search(r"\btemplate\b", re.split(r"[;{}]", text)[-1]))


def _closing(text: str, start: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise ValueError("[simt] a kernel's parameters must end with a parenthesis")


def _split(parameters: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for at, c in enumerate(parameters):
        depth += {"(": 1, "[": 1, "<": 1, ")": -1, "]": -1, ">": -1}.get(c, 0)
        if c == "," and depth == 0:
            parts.append(parameters[start:at])
            start = at + 1
    last = parameters[start:]
    return [*parts, last] if last.strip() else parts


def _one_for_all_spaces(text: str) -> str:
    """Keep the first of specializations that differ in an address space.

    CUDA has one address space, so they are the same to it.
    """
    seen: set[str] = set()

    def once(match: re.Match[str]) -> str:
        first = match[1] not in seen
        seen.add(match[1])
        return match[0] if first else _blank(match)

    return _POINTER_SPECIALIZATION.sub(once, text)


def _without_thread_on_constructors(text: str) -> str:
    """Drop the `thread` after a constructor's parameters.

    clang does not find a qualified default constructor of a member. In Metal the
    qualifier has no effect there.
    """
    for name in set(_STRUCT.findall(text)):
        text = re.sub(
            rf"((?<![\w.>]){name}\s*\([^{{}};]*?\)\s*)thread\b(?=\s*[:{{;])",
            r"\1",
            text,
        )
    return text

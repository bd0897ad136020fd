"""Checks Metal's rules without a Metal compiler: python -m tests.simt.lint

The strict front end checks types and address spaces. With libclang, the lint then finds
code that C++ for OpenCL accepts and Apple's compiler refuses: pointers and references
without an address space, variables at program scope outside `constant`, virtual
functions and recursion.

Two rules are this project's own. Every device function is NIBBLE_INLINE (shared.h).
None calls simd_shuffle(), which takes 28 to 32 cycles on M1 (metal-benchmarks,
"Intra-simd communication"): quad_shuffle() and simd_shuffle_xor() take 2.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clang import cindex

from . import build, plans, toolchain, verdicts
from .source import ENTRY, INSTANCE, rewrite, translate
from .toolchain import ROOT

# A type checker does not know their members, which are made at run time.
CursorKind: Any = cindex.CursorKind
StorageClass: Any = cindex.StorageClass
TypeKind: Any = cindex.TypeKind

_FUNCTIONS = {
    CursorKind.FUNCTION_DECL,
    CursorKind.CXX_METHOD,
    CursorKind.FUNCTION_TEMPLATE,
    CursorKind.CONSTRUCTOR,
}
_REFERENCES_TO_FUNCTIONS = {
    CursorKind.CALL_EXPR,
    CursorKind.DECL_REF_EXPR,
    CursorKind.OVERLOADED_DECL_REF,
}
_REFERENCES = {
    TypeKind.POINTER,
    TypeKind.LVALUEREFERENCE,
    TypeKind.RVALUEREFERENCE,
}
_SPACE = re.compile(r"__(global|local|constant|private)\b")


@dataclass(frozen=True, order=True)
class Offence:
    """A place in a kernel's text that breaks a rule."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


def lint(folder: Path, own_rules: bool = False) -> list[Offence]:
    """Return the offences in the headers of a folder that libclang finds.

    Args:
        folder: Folder of headers.
        own_rules: Also apply the rules that are this project's own.
    """
    headers = sorted(folder.glob("*.h"))
    texts = {f"{folder.name}/{h.name}": h.read_text() for h in headers}
    main = "".join(f'#include "{name}"\n' for name in texts)
    return _lint(texts, main, own_rules)


def lint_text(text: str) -> list[Offence]:
    """Return the offences in one flat source, without its instances."""
    text = INSTANCE.sub("", text)
    return _lint({"kernel.metal": text}, '#include "kernel.metal"\n')


def _lint(
    texts: dict[str, str], main_text: str, own_rules: bool = False
) -> list[Offence]:
    virtual = Path("/linted")  # exists only for the parser
    files = [(str(virtual / name), rewrite(text)[0]) for name, text in texts.items()]
    main = str(virtual / "main.cl")
    arguments = [
        *(flag for flag in toolchain.LANGUAGE if not flag.startswith("--target")),
        "-Wno-everything",
        f"-I{virtual}",
    ]
    unit = cindex.Index.create().parse(
        main,
        args=["-include", "simt/entry.h", *arguments],
        unsaved_files=[(main, main_text), *files],
    )
    found = {
        Offence(_name(d.location, virtual), d.location.line, d.spelling)
        for d in unit.diagnostics
        if d.severity >= cindex.Diagnostic.Error
    }
    ours = [c for c in _walk(unit.cursor) if _is_ours(c, virtual)]
    for cursor in ours:
        for message in _offences(cursor):
            where = cursor.location
            found.add(Offence(_name(where, virtual), where.line, message))
    if own_rules:
        entries = {
            match[1] for text in texts.values() for match in ENTRY.finditer(text)
        }
        for cursor in ours:
            for message in _own_offences(cursor, entries):
                where = cursor.location
                found.add(Offence(_name(where, virtual), where.line, message))
    for cursor in _recursive(ours):
        where = cursor.location
        message = f"{cursor.spelling} calls itself; Metal has no recursion"
        found.add(Offence(_name(where, virtual), where.line, message))
    return sorted(found)


def _name(location: Any, virtual: Path) -> str:
    path = str(location.file) if location.file else "?"
    return path.removeprefix(f"{virtual}/")


def _is_ours(cursor: Any, virtual: Path) -> bool:
    file = cursor.location.file
    return file is not None and file.name.startswith(str(virtual))


def _walk(cursor: Any) -> Iterator[Any]:
    for child in cursor.get_children():
        yield child
        yield from _walk(child)


def _offences(cursor: Any) -> Iterator[str]:
    kind = cursor.kind
    if kind in (CursorKind.PARM_DECL, CursorKind.VAR_DECL, CursorKind.FIELD_DECL):
        if not _is_deduced(cursor) and _lacks_space(cursor.type):
            yield f"{cursor.spelling} points nowhere: name its address space"
    if kind in _FUNCTIONS and _lacks_space(cursor.result_type):
        yield f"{cursor.spelling} returns a pointer without an address space"
    if kind == CursorKind.VAR_DECL and _is_static(cursor):
        if "__constant" not in cursor.type.spelling:
            yield f"{cursor.spelling} is at program scope: it must be constant"
    if kind == CursorKind.CXX_METHOD and cursor.is_virtual_method():
        yield f"{cursor.spelling} is virtual"


def _own_offences(cursor: Any, entries: set[str]) -> Iterator[str]:
    """Yield the broken rules of this project; `entries` are names of kernels."""
    if cursor.kind in _FUNCTIONS and cursor.spelling not in entries:
        words = [token.spelling for token in cursor.get_tokens()]
        name = cursor.spelling.split("<")[0]
        if "{" in words and "NIBBLE_INLINE" not in words[: words.index(name)]:
            yield f"{name} is not NIBBLE_INLINE: it may become a call"
    if cursor.kind in _REFERENCES_TO_FUNCTIONS and cursor.spelling == "simd_shuffle":
        yield "simd_shuffle takes a dozen instructions: use quad_shuffle or _xor"


def _is_deduced(cursor: Any) -> bool:
    return any(token.spelling == "auto" for token in cursor.get_tokens())


def _lacks_space(kind: Any) -> bool:
    while kind.kind in _REFERENCES:
        pointee = kind.get_pointee()
        # The text after a pointer's star names the space of the pointer itself.
        outermost = pointee.spelling.split("<")[0]
        if pointee.kind in _REFERENCES:
            outermost = outermost.rsplit("*", 1)[-1]
        if not _SPACE.search(outermost):
            return True
        kind = pointee
    return False


def _is_static(cursor: Any) -> bool:
    scope = cursor.semantic_parent.kind
    return cursor.storage_class == StorageClass.STATIC or scope in (
        CursorKind.NAMESPACE,
        CursorKind.TRANSLATION_UNIT,
    )


def _recursive(cursors: list[Any]) -> list[Any]:
    """Return functions that call themselves; calls inside templates match by name."""
    functions = {c.get_usr(): c for c in cursors if c.kind in _FUNCTIONS}
    by_name: dict[str, set[str]] = {}
    for usr, c in functions.items():
        by_name.setdefault(c.spelling, set()).add(usr)
    calls: dict[str, set[str]] = {}
    for usr, function in functions.items():
        calls[usr] = set()
        for c in _walk(function):
            if c.kind == CursorKind.CALL_EXPR and c.referenced:
                calls[usr].add(c.referenced.get_usr())
            elif c.kind == CursorKind.OVERLOADED_DECL_REF and c.spelling in by_name:
                calls[usr] |= by_name[c.spelling]
    return [functions[usr] for usr in functions if _reaches(usr, usr, calls)]


def _reaches(start: str, goal: str, calls: dict[str, set[str]]) -> bool:
    seen, waiting = set(), list(calls.get(start, ()))
    while waiting:
        usr = waiting.pop()
        if usr == goal:
            return True
        if usr not in seen:
            seen.add(usr)
            waiting += calls.get(usr, ())
    return False


def check_instances() -> list[str]:
    """Return the front end's errors, for one instance of each kernel in each type."""
    chosen: dict[str, str] = {}
    for kernel in plans.instances():
        chosen.setdefault(plans.unit_name(kernel).rsplit("_", 1)[0], kernel)

    def errors(kernel: str) -> str:
        try:
            build.check_syntax(translate(plans.kernel_source(kernel)))
        except toolchain.CompileError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(build.JOBS) as pool:
        return [text for text in pool.map(errors, chosen.values()) if text]


def check_kernels() -> None:
    """Check kernels/, unless the same text has passed before.

    Raises:
        CompileError: A kernel breaks a rule; the message has each place.
    """

    def check() -> None:
        found = [*map(str, lint(ROOT / "kernels", own_rules=True)), *check_instances()]
        if found:
            raise toolchain.CompileError("\n".join(found))

    text = toolchain.digest_files((ROOT / "kernels").glob("**/*.h"))
    verdicts.once("lint", f"{text} {build.headers()}", check)


def main() -> int:
    try:
        check_kernels()
    except toolchain.CompileError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

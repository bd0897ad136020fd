"""Make subclasses with the same code, in which some names mean other functions.

Most of a layer's computation is in functions that its code calls by name:
``mx.quantized_matmul``, ``mx.fast.rope``, mlx-lm's ``swiglu``. A rebound class is a
subclass whose methods have the same code, but in which those names mean other
functions. This works for every architecture without a list of them. Nothing global is
patched: other objects of the same class compute as before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import mlx.nn as nn

from mlx_nibble._pickling import pickled_as

# From each rebound class to the class that it is made from.
_originals: dict[type, type] = {}


def original(kind: type) -> type:
    """Return the class that a rebound class was made from; other classes as is."""
    return _originals.get(kind, kind)


def derived(kind: type, body: dict[str, Any]) -> type:
    """Return a subclass that counts as made from the same class as ``kind``."""
    named = original(kind)
    described = {
        name: getattr(named, name) for name in ("__doc__", "__module__", "__qualname__")
    } | {"__reduce_ex__": pickled_as(named)}
    made = type(kind.__name__, (kind,), described | body)
    _originals[made] = named
    return made


@dataclass(frozen=True)
class Rebound:
    """A subclass, and the replaced operations that each of its methods calls."""

    kind: type[nn.Module]
    methods: Mapping[str, frozenset[str]]

    @property
    def operations(self) -> frozenset[str]:
        """Names of all replaced operations."""
        return frozenset().union(*self.methods.values())


class Rebinding:
    """Replacements of functions, and the subclasses that call the replacements."""

    def __init__(
        self,
        functions: Mapping[str, Callable],
        written: Mapping[type[nn.Module], Rebound] | None = None,
    ) -> None:
        """Store the replacements.

        Args:
            functions: From the full name of a function, with its module, to its
                replacement. The name may be that of a method, with its class.
            written: From a class to its subclass, for subclasses that exist in source
                code.
        """
        self._methods = {n: f for n, f in functions.items() if _is_method(n)}
        self._functions = {n: f for n, f in functions.items() if not _is_method(n)}
        self._overlays: dict[str, _Overlay] = {}
        self._seen: dict[FunctionType, tuple[FunctionType, frozenset[str]]] = {}
        self._classes: dict[type, Rebound | None] = dict(written or {})
        self.refused: set[type] = set()  # classes that allow no such subclass
        _originals.update(
            {rebound.kind: kind for kind, rebound in (written or {}).items()}
        )

    def subclass(self, kind: type) -> Rebound | None:
        """Return the rebound subclass of a module's class; None without a change."""
        if kind not in self._classes:
            self._classes[kind] = self._make(kind)
        return self._classes[kind]

    def function(self, function: FunctionType) -> Callable:
        """Return a function's replacement, or its code with replaced names.

        Names are replaced in all functions that it calls, too.
        """
        if stand_in := self._stand_in(function):
            return self._functions[stand_in]
        return self._function(function)[0]

    def module(self, module: ModuleType) -> Any:
        """Return a module whose functions are replaced."""
        return self._overlay(module)

    def _make(self, kind: type) -> Rebound | None:
        if kind is nn.Module or not issubclass(kind, nn.Module):
            return None
        own: dict[str, Any] = {}
        methods: dict[str, frozenset[str]] = {}
        reaches_bases = False
        for name, method in vars(kind).items():
            full = f"{kind.__module__}.{kind.__qualname__}.{name}"
            if full in self._methods:
                own[name] = self._methods[full]
                methods[name] = frozenset({own[name].__name__})
            elif type(method) is FunctionType:  # isinstance accepts compiled ones
                reaches_bases |= "super" in method.__code__.co_names
                changed, used = self._function(method)
                if used:
                    own[name], methods[name] = changed, used
        # In the method resolution order, a base's subclass comes right before the base.
        # `super()` in unchanged code therefore finds rebound methods.
        bases = [base for base in map(self.subclass, kind.__bases__) if base]
        for base in bases:
            for name, used in base.methods.items():
                if reaches_bases or name not in vars(kind):
                    methods[name] = methods.get(name, frozenset()) | used
        if not methods:
            return None
        described = {
            name: getattr(kind, name)
            for name in ("__doc__", "__module__", "__qualname__")
        } | {"__reduce_ex__": pickled_as(kind)}
        parents = (kind, *(base.kind for base in bases))
        try:
            made = type(kind.__name__, parents, own | described)
        except Exception:  # of the class's own code, such as __init_subclass__
            self.refused.add(kind)
            return None
        rebound = Rebound(made, methods)
        _originals[rebound.kind] = kind
        return rebound

    def _function(self, function: FunctionType) -> tuple[FunctionType, frozenset[str]]:
        """Return the code with replaced names, and the replaced operations."""
        if function not in self._seen:
            self._seen[function] = function, frozenset()  # in case it calls itself
            self._seen[function] = self._copy(function)
        return self._seen[function]

    def _copy(self, function: FunctionType) -> tuple[FunctionType, frozenset[str]]:
        known = function.__globals__
        names = set(_names(function.__code__))
        replaced: dict[str, Any] = {}
        used: set[str] = set()
        for name in names & known.keys():
            value = known[name]
            if isinstance(value, ModuleType):
                if called := self._named_in(value.__name__, names):
                    replaced[name] = self._overlay(value)
                    used |= called
            elif stand_in := self._stand_in(value):
                used.add(stand_in)
                replaced[name] = self._functions[stand_in]
            elif type(value) is FunctionType:
                changed, inner = self._function(value)
                if inner:
                    replaced[name] = changed
                    used |= inner
        closure = function.__closure__ and tuple(
            self._cell(cell, used) for cell in function.__closure__
        )
        if not used:
            return function, frozenset()
        copy = FunctionType(
            function.__code__,
            known | replaced,
            function.__name__,
            function.__defaults__,
            closure,
        )
        # A function that calls itself must call the copy.
        copy.__globals__.update({n: copy for n in names if known.get(n) is function})
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__dict__.update(function.__dict__)
        copy.__qualname__ = function.__qualname__
        return copy, frozenset(name.rsplit(".", 1)[-1] for name in used)

    def _cell(self, cell: CellType, used: set[str]) -> CellType:
        """Return the cell of a closure, or one with a function's replacement."""
        try:
            stand_in = self._stand_in(cell.cell_contents)
        except ValueError:  # an empty cell
            return cell
        if stand_in is None:
            return cell
        used.add(stand_in)
        return CellType(self._functions[stand_in])

    def _named_in(self, module: str, names: set[str]) -> set[str]:
        """Return the replaced functions of a module that these names may call."""
        return {
            full
            for full in self._functions
            if full.startswith(f"{module}.")
            and names.issuperset(full.removeprefix(f"{module}.").split("."))
        }

    def _stand_in(self, value: Any) -> str | None:
        """Return the full name of a value that is replaced; None for other values."""
        for full in self._functions:
            module, _, name = full.rpartition(".")
            # Code cannot call a function of a module that is not imported.
            home = sys.modules.get(module)
            if value is getattr(home, name, self):  # self equals no value
                return full
        return None

    def _overlay(self, module: ModuleType) -> _Overlay:
        """Return an overlay of a module, with its replaced functions."""
        prefix = f"{module.__name__}."
        if prefix not in self._overlays:
            names: dict[str, Any] = {}
            for full, function in self._functions.items():
                first, *rest = full.removeprefix(prefix).split(".")
                if full.startswith(prefix):
                    names[first] = (
                        self._overlay(getattr(module, first)) if rest else function
                    )
            self._overlays[prefix] = _Overlay(module, names)
        return self._overlays[prefix]


class _Overlay:
    """A module in which some names mean other functions."""

    def __init__(self, module: ModuleType, names: dict[str, Any]) -> None:
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _is_method(full: str) -> bool:
    """Return whether a full name has a class before its last part."""
    return full.split(".")[-2][:1].isupper()


def _names(code: CodeType) -> Iterator[str]:
    """Yield each global and attribute that code names, in nested functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)

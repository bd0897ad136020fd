"""Subclasses whose code is that of a class, with some names meaning something else.

What a layer computes is mostly not a module but a function that its code calls by
name: ``mx.quantized_matmul``, ``mx.fast.rope``, mlx-lm's ``swiglu``. A rebound class
is a subclass whose methods are the same code, in which those names mean other
functions. So every architecture is served, none is listed, and nothing global is
patched: other objects of the same class go on as before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import mlx.nn as nn

from mlx_nibble._pickling import pickled_as

# By every rebound class there is: the class that it is a subclass of.
_originals: dict[type, type] = {}


def original(kind: type) -> type:
    """The class that a rebound one was made from; of any other, itself."""
    return _originals.get(kind, kind)


@dataclass(frozen=True)
class Rebound:
    """A subclass, and the operations that each of its methods calls by other means."""

    kind: type[nn.Module]
    methods: Mapping[str, frozenset[str]]

    @property
    def operations(self) -> frozenset[str]:
        """Names of all operations that have another meaning somewhere in it."""
        return frozenset().union(*self.methods.values())


class Rebinding:
    """Functions that stand in for others, and the subclasses in which they do."""

    def __init__(
        self,
        functions: Mapping[str, Callable],
        written: Mapping[type[nn.Module], Rebound] | None = None,
    ) -> None:
        """Say what stands in for what.

        Args:
            functions: By the full name of a function, module included, what it
                shall mean.
            written: Subclasses of classes that need not be made, for they have been
                written.
        """
        self._functions = dict(functions)
        self._overlays: dict[str, _Overlay] = {}
        self._seen: dict[FunctionType, tuple[FunctionType, frozenset[str]]] = {}
        self._classes: dict[type, Rebound | None] = dict(written or {})
        _originals.update(
            {rebound.kind: kind for kind, rebound in (written or {}).items()}
        )

    def subclass(self, kind: type) -> Rebound | None:
        """The rebound subclass of a module's class; None if nothing is to change."""
        if kind not in self._classes:
            self._classes[kind] = self._make(kind)
        return self._classes[kind]

    def function(self, function: FunctionType) -> FunctionType:
        """The same code in which, and below which, names have their other meaning."""
        return self._function(function)[0]

    def module(self, module: ModuleType) -> Any:
        """A module in which the functions below it have their other meaning."""
        return self._overlay(module)

    def _make(self, kind: type) -> Rebound | None:
        if kind is nn.Module or not issubclass(kind, nn.Module):
            return None
        own: dict[str, FunctionType] = {}
        methods: dict[str, frozenset[str]] = {}
        reaches_bases = False
        for name, method in vars(kind).items():
            if type(method) is FunctionType:  # what is compiled says it is one, too
                reaches_bases |= "super" in method.__code__.co_names
                changed, used = self._function(method)
                if used:
                    own[name], methods[name] = changed, used
        # In the order of resolution, a base's subclass comes right before the base:
        # what `super()` of unchanged code finds is rebound, too.
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
        rebound = Rebound(type(kind.__name__, parents, own | described), methods)
        _originals[rebound.kind] = kind
        return rebound

    def _function(self, function: FunctionType) -> tuple[FunctionType, frozenset[str]]:
        """The same code with other meanings, and the operations that it calls so."""
        if function not in self._seen:
            self._seen[function] = function, frozenset()  # of one that calls itself
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
        if not replaced:
            return function, frozenset()
        copy = FunctionType(
            function.__code__,
            known | replaced,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__dict__.update(function.__dict__)
        copy.__qualname__ = function.__qualname__
        return copy, frozenset(name.rsplit(".", 1)[-1] for name in used)

    def _named_in(self, module: str, names: set[str]) -> set[str]:
        """Functions of ours below a module that code with these names may call."""
        return {
            full
            for full in self._functions
            if full.startswith(f"{module}.")
            and names.issuperset(full.removeprefix(f"{module}.").split("."))
        }

    def _stand_in(self, value: Any) -> str | None:
        """The full name of a function that has a stand-in, if it is one."""
        for full in self._functions:
            module, _, name = full.rpartition(".")
            # What has not been imported is not what the code calls.
            home = sys.modules.get(module)
            if value is getattr(home, name, self):  # self: nothing in a module is
                return full
        return None

    def _overlay(self, module: ModuleType) -> _Overlay:
        """A module in which the functions below it have their other meaning."""
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
    """A module of which some names mean something else."""

    def __init__(self, module: ModuleType, names: dict[str, Any]) -> None:
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _names(code: CodeType) -> Iterator[str]:
    """Every global and attribute that code names, in nested functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)

"""Find what a method's code may read, without running it.

A recorded block (blocks.py) is right while nothing that its code reads has changed. So
its code may only call code of known packages, and may keep nothing for later calls.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MethodDescriptorType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# A class or the globals of a function, a name in it, and the value.
Member = tuple[Any, str, Any]

_BUILT_IN = (BuiltinFunctionType, MethodDescriptorType, type(mx.add))
_CACHED = type(functools.cache(len))
_KEEPS = {"STORE_ATTR", "DELETE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR", "STORE_GLOBAL"}


class Untrusted(Exception):
    """Code that may do more than compute."""


class Reach:
    """The functions that a method reaches by name, and all names in their code."""

    def __init__(
        self, kind: type, method: str, packages: tuple[str, ...], *, keeps: bool = False
    ) -> None:
        """Follow the names in a method's code.

        Args:
            kind: Class of the method.
            method: Name of the method.
            packages: Where code may come from.
            keeps: Whether code may keep something for later calls.

        Raises:
            Untrusted: If it reaches other code, or code that keeps something.
        """
        self.members: list[Member] = []
        self.names: set[str] = set()
        self._packages, self._keeps = packages, keeps
        ahead: list[tuple[dict | None, str]] = [(None, method)]
        seen: set[tuple[int, str]] = set()
        while ahead:
            space, name = ahead.pop()
            if (id(space), name) in seen:
                continue
            seen.add((id(space), name))
            self.names.add(name)
            # The bases count, too: code may call super().
            owners = _bases(kind) if space is None else (space,)
            for owner in owners:
                space_of = vars(owner) if isinstance(owner, type) else owner
                if name in space_of:
                    ahead += self._follow(owner, name, space_of[name])
        if not any(name == method for _, name, _ in self.members):
            raise Untrusted

    def _follow(
        self, owner: Any, name: str, value: Any
    ) -> Iterator[tuple[dict | None, str]]:
        """Add a member, and yield where the names in its code are."""
        if not isinstance(value, (classmethod, staticmethod)):
            self.members.append((owner, name, value))
        if callable(value) and not isinstance(
            value, (type, FunctionType, classmethod, staticmethod)
        ):
            check_value(value, self._packages, read=True)
        for function in _functions(value):
            self._check(function)
            for code in _codes(function):
                if "getattr" in code.co_names:
                    self.names |= {c for c in code.co_consts if isinstance(c, str)}
                for inner in code.co_names:
                    yield None, inner
                    yield function.__globals__, inner

    def _check(self, function: Any) -> None:
        keeps = not self._keeps and any(map(_stores, _codes(function)))
        if keeps or not is_code_of(function, self._packages):
            raise Untrusted


def is_code_of(function: Any, packages: tuple[str, ...]) -> bool:
    """Return whether a function of Python is defined in one of these packages."""
    home = getattr(function, "__globals__", {}).get("__name__", "")
    return f"{home}.".startswith(packages)


def is_of(kind: type, packages: tuple[str, ...]) -> bool:
    """Return whether a class is defined in one of these packages."""
    return f"{kind.__module__}.".startswith(packages)


def check_value(value: Any, packages: tuple[str, ...], *, read: bool) -> None:
    """Check that a module's value can be compared, or is not read.

    Args:
        value: A value in a module's dict, or an attribute of it.
        packages: Where functions and classes may come from.
        read: Whether the code has its name.

    Raises:
        Untrusted: If it is of a kind that might change without notice.
    """
    if value is None or isinstance(value, (bool, int, float, str, mx.Dtype)):
        return
    if isinstance(value, (tuple, frozenset)):
        for item in value:
            check_value(item, packages, read=True)
    elif isinstance(value, functools.partial):
        check_value((value.func, value.args), packages, read=True)
        check_value(tuple(value.keywords.values()), packages, read=True)
    elif isinstance(value, _CACHED):
        check_value(value.__wrapped__, packages, read=True)
    elif isinstance(value, type):
        if not is_of(value, packages):
            raise Untrusted
    elif hasattr(value, "__globals__"):
        if not is_code_of(value, packages):
            raise Untrusted
    elif isinstance(value, _BUILT_IN):
        return
    elif read or not is_of(type(value), packages):
        # Such as a user's object that is called in the place of a module. Arguments
        # of a model may be there, but not be read.
        raise Untrusted


def check_values(
    module: nn.Module, reach: Reach, packages: tuple[str, ...]
) -> Iterator[Member]:
    """Check all values of a module that are neither arrays nor modules.

    Yields:
        The values that the code may read of a model's arguments.

    Raises:
        Untrusted: If one might change without notice.
    """
    ahead = [*module.items()]
    while ahead:
        name, value = ahead.pop()
        if isinstance(value, dict) and not isinstance(value, nn.Module):
            ahead += [(name, item) for item in value.values()]
        elif isinstance(value, list):
            ahead += [(name, item) for item in value]
        elif not isinstance(value, (mx.array, nn.Module)):
            check_value(value, packages, read=name in reach.names)
    for name, value in vars(module).items():
        if is_dataclass(value) and is_of(type(value), packages):
            yield from _arguments(value, reach, packages)
        elif name != "_no_grad":  # says what is trained
            check_value(value, packages, read=name in reach.names)


def _arguments(value: Any, reach: Reach, packages: tuple[str, ...]) -> Iterator[Member]:
    """Check the fields of a model's arguments that code may read, and yield them."""
    for name in reach.names & {n for base in _bases(type(value)) for n in vars(base)}:
        if name not in vars(value):  # a property or a method
            raise Untrusted
    for name in reach.names & vars(value).keys():
        check_value(vars(value)[name], packages, read=True)
        yield value, name, vars(value)[name]


def _bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base not in (dict, object)]


def _functions(member: Any) -> Iterator[Any]:
    """Yield the functions of Python that a class attribute or a global runs."""
    if isinstance(member, property):
        yield member.fget
    elif isinstance(member, (staticmethod, classmethod)):
        yield member.__func__
    elif isinstance(member, FunctionType):  # or a compiled one
        yield member


def _codes(function: Any) -> Iterator[CodeType]:
    """Yield a function's code and that of functions inside it."""
    ahead = [function.__code__]
    while ahead:
        code = ahead.pop()
        yield code
        ahead += [c for c in code.co_consts if isinstance(c, CodeType)]


@functools.cache
def _stores(code: CodeType) -> bool:
    return any(i.opname in _KEEPS for i in dis.get_instructions(code))

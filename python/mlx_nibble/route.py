"""The layers between the products on our CPU operations, whoever wrote them.

What lies between two linear layers is mostly not a module but a function that a
module's code calls by name: ``mx.fast.rms_norm``, ``mx.fast.rope``, and in mlx-lm
``scaled_dot_product_attention`` and ``swiglu``. A routed module gets a subclass of
its own class whose methods are the same code, in which those names mean ours. So
every architecture is served, none is listed, and nothing global is patched: other
models, of the same architecture too, go on as before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn

from mlx_nibble import _native, fast
from mlx_nibble.report import Routed

_OPERATIONS = ("rms_norm", "rope", "scaled_dot_product_attention")


class _Overlay:
    """A module of which some names mean something else."""

    def __init__(self, module: Any, **names: Any) -> None:
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


_MX = _Overlay(
    mx, fast=_Overlay(mx.fast, **{name: getattr(fast, name) for name in _OPERATIONS})
)
# By class: its routed subclass and the operations in it; None if there are none.
_routed: dict[type, tuple[type, frozenset[str]] | None] = {}


def route(model: mlx_nn.Module) -> list[Routed]:
    """Route the modules of a model that runs on the CPU; on others, none."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    if _native.ext is None or not on_cpu:
        return []
    subclasses = {entry[0] for entry in _routed.values() if entry}
    routed = []
    for path, module in model.named_modules():
        kind = type(module)
        if kind in subclasses:
            continue
        if kind not in _routed:
            _routed[kind] = _routed_class(kind)
        entry = _routed[kind]
        if entry is not None:
            module.__class__, operations = entry
            routed.append(Routed(path, module, kind, operations))
    return routed


def _routed_class(kind: type) -> tuple[type, frozenset[str]] | None:
    methods: dict[str, Any] = {}
    operations: set[str] = set()
    for name in dir(kind):
        # As attribute lookup finds it, but unbound.
        home = next(base for base in kind.__mro__ if name in vars(base))
        method = vars(home)[name]
        if isinstance(method, FunctionType) and home is not mlx_nn.Module:
            changed, used = _with_our_names(method)
            if used:
                methods[name] = changed
                operations |= used
    if not methods:
        return None
    described = {
        name: getattr(kind, name) for name in ("__doc__", "__module__", "__qualname__")
    }
    return type(kind.__name__, (kind,), methods | described), frozenset(operations)


def _with_our_names(function: FunctionType) -> tuple[FunctionType, set[str]]:
    """The same code with our operations, and which of them it uses."""
    known = function.__globals__
    names = set(_names(function.__code__))
    replaced: dict[str, Any] = {}
    used: set[str] = set()
    for name in names & known.keys():
        value = known[name]
        if value is mx and "fast" in names and names & set(_OPERATIONS):
            replaced[name] = _MX
            used |= names & set(_OPERATIONS)
        elif _is_from_mlx_lm(value, "activations", "swiglu"):
            replaced[name] = fast.swiglu
            used.add("swiglu")
        elif value is not function and _is_from_mlx_lm(
            value, "base", "scaled_dot_product_attention"
        ):
            # It looks at the cache first: a quantized one has its own attention.
            replaced[name], inner = _with_our_names(value)
            used |= inner
    if not replaced:
        return function, used
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
    return copy, used


def _names(code: CodeType) -> Iterator[str]:
    """Every global and attribute that code names, in nested functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_from_mlx_lm(value: Any, module: str, name: str) -> bool:
    # A model that uses it has imported it: there is nothing to import here.
    home = sys.modules.get(f"mlx_lm.models.{module}")
    return home is not None and value is getattr(home, name, None)

"""Decoder blocks whose code runs once, and is replayed as one node for other tokens.

A token of a small model takes less time on a CPU than the Python code that builds its
graph. So the graph of a block is recorded: its code runs with arrays without values in
the place of its input, the token's position and the KV cache. Later tokens need one
call, which makes one node of MLX's graph (docs/internals/fusion.md).

A recording is used only while everything that the code read is as it was: the classes
of all modules of the block and their methods, numbers and texts, the forms of all
arrays. Weights may change: each call reads them from the modules. In all other cases
the block's code runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble import _native
from mlx_nibble.acceleration.probe import Probe
from mlx_nibble.acceleration.reach import (
    Member,
    Reach,
    Untrusted,
    check_values,
    is_of,
)
from mlx_nibble.acceleration.rebind import Rebinding, derived, original
from mlx_nibble.acceleration.report import Routed

ATTENTION = "scaled_dot_product_attention"

# Code outside of these packages may do more than compute.
_TRUSTED = (
    "mlx.nn.",
    "mlx.utils.",
    "mlx_lm.",
    "mlx_nibble.nn.",
    "mlx_nibble.fast.",
    "mlx_nibble.acceleration.stand_ins.",
)
_TRUSTED_CACHES = ("mlx.utils.", "mlx_lm.", "mlx_nibble.lm.")
# Caches of mlx-lm that hold keys and values of one place in the model.
_CACHES = (
    "KVCache",
    "QuantizedKVCache",
    "RotatingKVCache",
    "BatchKVCache",
    "BatchRotatingKVCache",
)
# Rooms of a cache that a block is recorded with, and the tokens in it: code that
# depends on them makes different graphs. A cache that rotates is full in the second.
# No other dimension of the graphs is likely to have such a length.
_LENGTHS = ((1024, 1008, 1008), (1 << 20, (1 << 20) - 9, 1 << 20))


def found(model: nn.Module, others: Rebinding) -> Iterator[Routed]:
    """Yield the decoder blocks of a model: the parents of layers that call attention.

    Args:
        model: Model whose other layers are on our operations.
        others: Subclasses of layers that are not quantized.
    """

    def attends(module: Any) -> bool:
        rebound = others.subclass(original(type(module)))
        return rebound is not None and ATTENTION in rebound.operations

    for path, module in model.named_modules():
        now = type(module)
        children = [child for child in module.values() if isinstance(child, nn.Module)]
        if (
            any(map(attends, children))
            and not hasattr(now, "_steps")
            and _takes_a_cache(now)
        ):
            operations = frozenset({"decode steps"})
            yield Routed(path, module, now, _replaying(now), operations, "CPU")


def _takes_a_cache(kind: type) -> bool:
    """Return whether a class is called as ``block(x, mask, cache)``."""
    try:
        parameters = [*inspect.signature(kind.__call__).parameters.values()][2:]
    except (TypeError, ValueError):
        return False
    names = [p.name for p in parameters]
    return names[:2] == ["mask", "cache"] and all(
        p.default is not p.empty for p in parameters[2:]
    )


@cache
def _replaying(kind: type) -> type:
    """Return the subclass of a block's class that replays its code."""
    steps = _native.ext.Steps()  # pyright: ignore[reportOptionalMemberAccess]

    def call(self: Any, *given: Any, **named: Any) -> mx.array:
        # As mlx-lm's models do: block(x, mask, cache) or block(x, mask, cache=cache).
        cache = given[2] if len(given) == 3 and not named else None
        if len(given) == 2 and len(named) == 1:
            cache = named.get("cache")
        if (
            cache is not None
            and (given[1] is None or isinstance(given[1], mx.array))
            and isinstance(given[0], mx.array)
            and type(self) is made
        ):
            x, mask = given[:2]
            y = steps.replay(self, x, mask, cache)
            if y is False and _is_known(cache):
                recorded = _recorded(kind, self, x, mask, cache)
                steps.record(self, x, mask, cache, *recorded)
                y = steps.replay(self, x, mask, cache)
            if isinstance(y, mx.array):
                return y
        return kind.__call__(self, *given, **named)

    made = derived(kind, {"__call__": call, "_steps": steps})
    return made


def _is_known(cache: Any) -> bool:
    """Return whether a cache is of a class of mlx-lm, which the steps know."""
    caches = sys.modules.get("mlx_lm.models.cache")
    return any(type(cache) is getattr(caches, name, None) for name in _CACHES)


def _recorded(
    kind: Any, block: Any, x: mx.array, mask: mx.array | None, cache: Any
) -> tuple[list[tuple], list[Member]]:
    """Run a block's code with holes, for caches of different lengths.

    Returns:
        For each run x, the position and the mask, which are holes, then the output,
        the cache's arrays, and the cache before the run. Empty if the code cannot be
        run so. Then the members of classes that the code reads.
    """
    ext: Any = _native.ext
    try:
        members = _members(kind, block, type(cache))
    except Untrusted:
        return [], []
    runs = []
    for room, *tokens in _LENGTHS:
        before, probe = Probe.pair(cache, room, tokens["max_size" in vars(cache)])
        token = ext.token_of(before)
        if token is None:
            return [], []
        x_hole, mask_hole = ext.hole(x.shape, x.dtype), None
        if mask is not None:
            mask_hole = ext.hole([*mask.shape[:-1], token[0]], mask.dtype)
        try:
            y = kind.__call__(block, x_hole, mask=mask_hole, cache=probe)
        except Exception:  # it needs a value: no matter why
            return [], []
        if type(y) is not mx.array or not probe.took(*token[1:], before):
            return [], []
        runs.append(
            (x_hole, probe.holes["offset"], mask_hole, y, probe.arrays(), before)
        )
    return runs, members


def _members(kind: type, block: Any, of_cache: type) -> list[Member]:
    """Return what a block's code reads of classes, and of the globals of functions.

    Raises:
        Untrusted: If it might do more than compute from what is compared.
    """
    found: dict[tuple[int, str], Member] = {}
    reaches: dict[type, Reach] = {
        of_cache: Reach(of_cache, "update_and_fetch", _TRUSTED_CACHES, keeps=True)
    }
    for module in block.modules():
        now = kind if module is block else type(module)
        if not is_of(now, _TRUSTED):
            raise Untrusted
        reaches[now] = reaches.get(now) or Reach(now, "__call__", _TRUSTED)
        for member in check_values(module, reaches[now], _TRUSTED):
            found[id(member[0]), member[1]] = member
    for reach in reaches.values():
        found |= {
            (id(owner), name): (owner, name, v) for owner, name, v in reach.members
        }
    return list(found.values())

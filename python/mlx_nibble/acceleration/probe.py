"""KV caches without values, with which a block's code runs while it is recorded."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx

from mlx_nibble import _native


class Probe:
    """A cache that shows holes to a block's code, and numbers to its own code."""

    holes: dict[str, mx.array]
    _updates = False

    @staticmethod
    def pair(model: Any, room: int, tokens: int) -> tuple[Any, Any]:
        """Return a cache of a class of mlx-lm with holes as its arrays, and a probe.

        Args:
            model: Cache that they are like, but for their size.
            room: Rows of the arrays.
            tokens: Tokens in them.
        """
        hole: Any = _native.ext.hole  # pyright: ignore[reportOptionalMemberAccess]

        def emptied(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return [emptied(a) for a in value]
            B, heads, _, width = value.shape
            return hole([B, heads, room, width], value.dtype)

        def filled(kind: type) -> Any:
            made = object.__new__(kind)
            now = vars(made)
            now |= vars(model)
            now |= {name: emptied(now[name]) for name in ("keys", "values")}
            sizes = {"offset": tokens, "_offset": tokens, "_idx": tokens}
            sizes["max_size"] = room
            now |= {k: v for k, v in sizes.items() if type(now.get(k)) is int}
            for name, value in now.items():
                if isinstance(value, mx.array) and name not in ("keys", "values"):
                    now[name] = mx.zeros(value.shape, value.dtype)
            return made

        kind = type(model)
        before, probe = filled(kind), filled(_probing(kind))
        arrays = {k: v for k, v in vars(before).items() if isinstance(v, mx.array)}
        shapes = {k: (v.shape, v.dtype) for k, v in arrays.items()}
        shapes = {"offset": ([], mx.int32)} | shapes
        for name in ("keys", "values"):
            shapes.pop(name, None)
        vars(probe)["holes"] = {k: hole(*shape) for k, shape in shapes.items()}
        return before, probe

    def arrays(self) -> list[mx.array]:
        """Return the keys, then the values: one array each, or more of codes."""
        now = vars(self)
        both = (now["keys"], now["values"])
        return [a for v in both for a in ([v] if isinstance(v, mx.array) else v)]

    def took(self, numbers: dict[str, int], added: dict[str, int], before: Any) -> bool:
        """Return whether the cache's code took a token as a step does.

        Args:
            numbers: Attributes after the token.
            added: Numbers that the token adds to arrays.
            before: The other cache of the pair.
        """
        now = dict(vars(self))
        for name in ("holes", "_updates"):
            now.pop(name, None)
        wanted = dict(vars(before)) | numbers
        for name, number in added.items():
            wanted[name] = wanted[name] + number
        for name in ("keys", "values"):
            del now[name], wanted[name]

        def alike(a: Any, b: Any) -> bool:
            if isinstance(a, mx.array) and isinstance(b, mx.array):
                return a.dtype == b.dtype and bool(mx.array_equal(a, b))
            return type(a) is type(b) and a == b

        return now.keys() == wanted.keys() and all(
            alike(now[k], wanted[k]) for k in now
        )


@cache
def _probing(kind: type) -> type:
    """Return a subclass of a cache's class that is a probe."""

    class Probing(Probe, kind):
        def __getattribute__(self, name: str) -> Any:
            now = object.__getattribute__(self, "__dict__")
            if not now.get("_updates") and name in now.get("holes", ()):
                return now["holes"][name]
            return super().__getattribute__(name)

        def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
            self._updates = True
            try:
                return super().update_and_fetch(keys, values)
            finally:
                self._updates = False

    return Probing

"""A model run part by part on several batches, with one part at a time in memory.

The model's own forward pass runs, once for each batch, and pauses whenever it calls a
part. So arguments, results and everything between parts are the model's, whatever they
are. A pass is a greenlet: it pauses inside calls that it did not make itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from greenlet import getcurrent, greenlet
from mlx.utils import tree_flatten

from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.trace import Trace


@dataclass(frozen=True)
class _Call:
    path: str
    args: tuple
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One call of a part, which all batches have reached.

    Attributes:
        path: Path of the part.
        part: The part.
        first: True for the first call of this part.
        last: True for the last call of this part.
        count: Number of batches.
    """

    path: str
    part: nn.Module
    first: bool
    last: bool
    _calls: Sequence[_Call]

    @property
    def count(self) -> int:
        """Number of batches."""
        return len(self._calls)

    def run(self, batch: int) -> Any:
        """Call the part on one batch, as often as needed, and evaluate the result.

        A cache that the model passes along stays as it is.
        """
        y = self.build(batch)
        mx.eval(arrays(y))
        return y

    def build(self, batch: int) -> Any:
        """Return the lazy result of the part on one batch, to differentiate."""
        call = self._calls[batch]
        args, kwargs = copied((call.args, call.kwargs))
        return self.part(*args, **kwargs)

    def proceed(self) -> list[Any]:
        """Return the results of all batches, with all side effects; call it once."""
        results = []
        for call in self._calls:
            y = self.part(*call.args, **call.kwargs)
            mx.eval(arrays(y))
            results.append(y)
        return results


def steps(
    model: nn.Module, traced: Trace, tokens: Sequence[mx.array]
) -> Iterator[Step]:
    """Yield every call of a part, in order; the part runs after its step.

    A part may be changed during its step: later parts see the results of the change.
    The pass ends with the last part, so the head does not run.

    Args:
        model: The model; a part is not evaluated before its step.
        traced: The trace of the model.
        tokens: Batches of token ids `[B, L]`.
    """
    passes = [greenlet(lambda batch=batch: model(batch)) for batch in tokens]
    hooks = [(part, _pause(path)) for path, part in traced.parts.items()]
    results: list[tuple] = [()] * len(passes)  # what each pass goes on with
    try:
        for index, path in enumerate(traced.calls):
            with intercepted(hooks):
                calls = [
                    one.switch(*given)
                    for one, given in zip(passes, results, strict=True)
                ]
            if any(not isinstance(c, _Call) or c.path != path for c in calls):
                raise ValueError(
                    f"[calibrate] every batch must call {path} next but one does not: "
                    "the model's forward pass depends on its tokens: use --method rtn."
                )
            first = path not in traced.calls[:index]
            last = path not in traced.calls[index + 1 :]
            step = Step(path, traced.parts[path], first, last, calls)
            yield step
            if index + 1 == len(traced.calls):
                break
            results = [(y,) for y in step.proceed()]
    finally:
        for one in passes:
            one.throw()


def arrays(tree: Any) -> list[mx.array]:
    """Return the arrays of a part's result."""
    return [v for _, v in tree_flatten([tree]) if isinstance(v, mx.array)]


def _pause(path: str) -> Hook:
    def hook(_: Any, *args: Any, **kwargs: Any) -> Any:
        outside = getcurrent().parent
        assert outside is not None  # the hooks are only in place inside a pass
        return outside.switch(_Call(path, args, kwargs))

    return hook


def copied(value: Any) -> Any:
    """Return a copy of a tree that the model may change: arrays, containers, caches."""
    return _copied(value, {})


def _copied(value: Any, known: dict[int, Any]) -> Any:
    if id(value) not in known:
        known[id(value)] = _copy(value, known)
    return known[id(value)]


def _copy(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, mx.array):
        return mx.array(value)  # `x[i] = y` changes an array in place
    if type(value) is dict:
        return {k: _copied(v, known) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_copied(v, known) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if not _is_cache(value):
        return value
    twin = copy.copy(value)
    vars(twin).update({k: _copied(v, known) for k, v in vars(value).items()})
    return twin


def has_cache(value: Any) -> bool:
    """Tell whether a tree has an object that a part may change beside its result."""
    if isinstance(value, (list, tuple)):
        return any(map(has_cache, value))
    return (
        any(map(has_cache, value.values())) if type(value) is dict else _is_cache(value)
    )


def _is_cache(value: Any) -> bool:
    known = callable(value) or isinstance(value, (nn.Module, mx.array))
    return hasattr(value, "__dict__") and not known

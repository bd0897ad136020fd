"""KV caches of the commands, in the 16-bit type of the checkpoint.

On a CPU activations are float32, and mlx-lm's caches would be, too: twice the memory of
mlx-lm, which computes in the checkpoint's type. Our attention reads either type, at the
same speed (docs/results/kv_cache.md), so a cache keeps what mlx-lm's would keep.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import base
from mlx_lm.models import cache as caches

from mlx_nibble import fast
from mlx_nibble.lm.replaced import replaced

_NARROW = (mx.bfloat16, mx.float16)
_OVER_CODES = "quantized_scaled_dot_product_attention"


class CacheType:
    """The type of new caches: that of the models loaded so far."""

    def __init__(self) -> None:
        """Start without a model."""
        self._seen: set[mx.Dtype | None] = set()

    def add(self, dtype: mx.Dtype | None) -> None:
        """Count a model; None if its checkpoint has no 16-bit type."""
        self._seen.add(dtype)

    @property
    def dtype(self) -> mx.Dtype | None:
        """The type that has the range of all models' types; None: that of the keys."""
        if not self._seen or None in self._seen:
            return None
        return next(dtype for dtype in _NARROW if dtype in self._seen)


def with_quantized_cache(
    model: nn.Module, bits: int, group_size: int
) -> Callable[[mx.array], mx.array]:
    """Return a model as a function of tokens, whose KV cache is quantized.

    Raises:
        ValueError: If mlx-lm has no quantized form of one of the model's caches.
    """

    def made() -> list[Any]:
        return [
            cache.to_quantized(group_size, bits)
            for cache in caches.make_prompt_cache(model)
        ]

    def logits(tokens: mx.array) -> mx.array:
        with replaced(base, _OVER_CODES, fast.quantized_scaled_dot_product_attention):
            return model(tokens, cache=made())

    try:
        made()
    except (AttributeError, NotImplementedError):
        kinds = sorted({type(c).__name__ for c in caches.make_prompt_cache(model)})
        raise ValueError(
            "[eval] --kv-bits needs caches that mlx-lm can quantize, but this model "
            f"has {', '.join(kinds)}: leave --kv-bits out."
        ) from None
    return logits


def of_checkpoint(dtypes: list[mx.Dtype]) -> mx.Dtype | None:
    """Return the 16-bit type that most of a checkpoint's arrays have; None without."""
    counts = {dtype: dtypes.count(dtype) for dtype in _NARROW}
    most = max(counts, key=lambda dtype: counts[dtype])
    return most if 2 * counts[most] > len(dtypes) else None


@contextmanager
def stored_as(kind: CacheType) -> Iterator[None]:
    """Let all of mlx-lm's caches store float32 keys and values in this type.

    A cache that has float32 already, such as one from a file, goes on so.
    """
    with ExitStack() as stack:
        for owner in vars(caches).values():
            update = vars(owner).get("update_and_fetch") if _is_class(owner) else None
            if update and {"keys", "values"} <= {*inspect.signature(update).parameters}:
                name = "update_and_fetch"
                stack.enter_context(replaced(owner, name, _storing(update, kind)))
        yield


def _is_class(value: Any) -> bool:
    return isinstance(value, type) and value.__module__ == caches.__name__


def _storing(update: Callable, kind: CacheType) -> Callable:
    @wraps(update)
    def update_and_fetch(self: Any, keys: mx.array, values: mx.array) -> Any:
        dtype = kind.dtype
        if dtype is not None and keys.dtype == mx.float32 and not _is_wide(self.keys):
            keys, values = keys.astype(dtype), values.astype(dtype)
        return update(self, keys, values)

    return update_and_fetch


def _is_wide(stored: Any) -> bool:
    """Tell whether a cache's keys, or the scales of its keys, are float32."""
    arrays = stored if isinstance(stored, list | tuple) else [stored]
    return any(a is not None and a.dtype == mx.float32 for a in arrays)

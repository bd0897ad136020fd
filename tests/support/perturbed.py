"""A computed tolerance: the effect of the products' rounding errors on a model.

No formula says how far rounding carries through layers, a softmax and steps of
training. So it is measured (D. S. Parker, "Monte Carlo arithmetic", 1997). The same
model runs once more with perturbed products. Every element of every quantized
product, and of its gradients, moves by u * sum |x| (|scale| code + |bias|), up or down
at random. Rows that are looked up move likewise.

Where a sum has terms of both signs, as in a model, its rounding error is of that size.
The length of the sum does not matter (Higham and Mary, "Sharper probabilistic backward
error analysis for basic linear algebra kernels with random data", 2020). Only
norms over many elements are compared, so no allowance for the unlikely is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.acceleration.rebind import Rebinding, original
from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.support.arrays import to_numpy


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Perturb the model's products by their rounding errors from now on."""
    rng = np.random.default_rng(seed)
    rebinding = Rebinding(
        {
            f"mlx.core.{name}": _Off(getattr(mx, name), rng)
            for name in ("quantized_matmul", "gather_qmm", "dequantize")
        }
    )
    for module in model.modules():
        rebound = rebinding.subclass(original(type(module)))
        if rebound is not None:
            module.__class__ = rebound.kind
    return model


# The bits of codes that are no signs, in the modes whose codes are floats.
_MAGNITUDES = {"mxfp4": 0x77777777, "nvfp4": 0x77777777, "mxfp8": 0x7F7F7F7F}


class _Off:
    """Return an MLX operation whose result is perturbed by its rounding error."""

    def __init__(self, operation: Callable, rng: np.random.Generator) -> None:
        self._operation, self._rng = operation, rng

    def __call__(self, *args: Any, **settings: Any) -> mx.array:
        arrays = {
            key: a
            for key, a in (*enumerate(args), *settings.items())
            if isinstance(a, mx.array) and mx.issubdtype(a.dtype, mx.floating)
        }

        magnitudes = _MAGNITUDES.get(settings.get("mode", "affine"))

        def exact(*values: mx.array, unsigned: bool = False) -> mx.array:
            given = dict(zip(arrays, values, strict=True))
            if unsigned and magnitudes is not None:
                words = {i: a for i, a in enumerate(args) if _is_packed(a)}
                given |= {i: a & magnitudes for i, a in words.items()}
            return self._operation(
                *(given.get(i, a) for i, a in enumerate(args)),
                **{name: given.get(name, a) for name, a in settings.items()},
            )

        def slack(a: mx.array) -> mx.array:
            u = UNIT_ROUNDOFF[str(a.dtype).removeprefix("mlx.core.")]
            return u * a * mx.array(self._rng.choice((-1.0, 1.0), a.shape), a.dtype)

        off = mx.custom_function(
            lambda *values: (
                exact(*values) + slack(exact(*map(mx.abs, values), unsigned=True))
            )
        )

        @off.vjp
        def _(values, cotangent, _):
            absolute = [mx.abs(a) for a in values]
            _, gradients = mx.vjp(exact, list(values), [cotangent])
            _, most = mx.vjp(exact, absolute, [mx.abs(cotangent)])
            return tuple(g + slack(m) for g, m in zip(gradients, most, strict=True))

        return off(*arrays.values())


def _is_packed(a: Any) -> bool:
    return isinstance(a, mx.array) and a.dtype == mx.uint32


def assert_as_close(
    ours: Mapping[str, Any], stock: Mapping[str, Any], moved: Mapping[str, Any]
) -> None:
    """Fail if an array is further from the stock one than the perturbed one is.

    Norms of differences are compared, for each array and for all together. A weight
    whose steps are smaller than one float32 rounding may differ by one rounding.
    """
    assert ours.keys() == stock.keys() == moved.keys() and stock

    def norm(name: str, other: Mapping[str, Any] | None = None) -> float:
        a = to_numpy(stock[name])
        return float(np.linalg.norm(a if other is None else to_numpy(other[name]) - a))

    u = UNIT_ROUNDOFF["float32"]
    off = {name: norm(name, ours) for name in stock}
    allowed = {name: norm(name, moved) + u * norm(name) for name in stock}
    assert math.hypot(*off.values()) <= math.hypot(*allowed.values())
    for name in stock:
        assert off[name] <= allowed[name], (name, off[name], allowed[name])

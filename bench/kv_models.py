"""The models of kv_cache and kv_batch, on our kernels and stock."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlx_nibble import lm

Call = Callable[[], object]


def models(args: argparse.Namespace, stock: bool) -> dict[str, Any]:
    """Load the model on our kernels, and stock."""
    found = {"ours": lm.load(args.folder, activations=args.activations)[0]}
    found |= {"stock": lm.load_stock(args.folder)[0]} if stock else {}
    for net in found.values():
        net.model.layers = net.model.layers[: args.layers]
    return found


def heads_of(model: Any) -> tuple[int, int]:
    """Return the number and the width of a model's key heads."""
    cache = make_prompt_cache(model)
    model(mx.array([[1]]), cache=cache)
    return cache[0].keys.shape[1], cache[0].keys.shape[3]

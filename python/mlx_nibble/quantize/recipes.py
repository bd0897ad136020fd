"""Recipes: a format for each matrix of a model, by its name and place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from mlx_nibble.formats import Format

Shapes = Mapping[str, tuple[int, ...]]
"""Path of each matrix to its shape `[..., N, K]`."""

Plan = Mapping[str, Format]
"""Path of each quantized matrix to its format; all others stay as they are."""

Recipe = Callable[[Shapes, Format], dict[str, Format]]

_LAYER = re.compile(r"\.(\d+)\.")
_ATTENTION = re.compile(r"attn|attention|mixer")


def uniform(shapes: Shapes, base: Format) -> dict[str, Format]:
    """Give all matrices the base format."""
    return _fitting(shapes, {path: base for path in shapes})


def attention8_mlp4(shapes: Shapes, base: Format) -> dict[str, Format]:
    """Give attention 8 bits and all other matrices 4."""
    plan = {
        path: replace(base, bits=8 if _ATTENTION.search(path) else 4) for path in shapes
    }
    return _fitting(shapes, plan)


def _mixed(low: int, high: int) -> Recipe:
    """Return mlx-lm's `mixed_LOW_HIGH`, which is llama.cpp's Q4_K_M.

    The head gets `high` bits. So do the value and down projections of the first and
    last eighth of the layers, and of every third layer between.
    """

    def recipe(shapes: Shapes, base: Format) -> dict[str, Format]:
        layers = 1 + max((_layer(path) or 0 for path in shapes), default=0)
        plan = {}
        for path in shapes:
            more = _wants_more(path, layers)
            plan[path] = replace(base, bits=high if more else low)
        return _fitting(shapes, plan)

    return recipe


RECIPES: dict[str, Recipe] = {
    "uniform": uniform,
    "attention8-mlp4": attention8_mlp4,
    "mixed_2_6": _mixed(2, 6),
    "mixed_3_4": _mixed(3, 4),
    "mixed_3_6": _mixed(3, 6),
    "mixed_4_6": _mixed(4, 6),
}


def _layer(path: str) -> int | None:
    found = _LAYER.search(path)
    return int(found[1]) if found else None


def _wants_more(path: str, layers: int) -> bool:
    if "lm_head" in path:
        return True
    if not re.search(r"v_proj|v_a_proj|v_b_proj|down_proj", path):
        return False
    index, eighth = _layer(path) or 0, layers // 8
    outer = index < eighth or index >= 7 * layers // 8
    return outer or (index - eighth) % 3 == 2


def _fitting(shapes: Shapes, plan: dict[str, Format]) -> dict[str, Format]:
    """Reduce the group size where rows are no multiple of it; omit other matrices.

    MLX stores no matrix whose rows are no multiple of 32.
    """
    fitting = {path: form.fitted(shapes[path][-1]) for path, form in plan.items()}
    return {path: form for path, form in fitting.items() if form is not None}

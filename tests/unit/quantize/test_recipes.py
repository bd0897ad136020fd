"""The bits of each matrix: recipes equal mlx-lm's, and budgets are kept."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.convert import mixed_quant_predicate_builder

from mlx_nibble.formats import Format
from mlx_nibble.layerwise.matrices import matrices
from mlx_nibble.quantize.budget import FormatCost, solve
from mlx_nibble.quantize.recipes import RECIPES
from tests.support import tiny_models

BASE = Format(4, 64)


def names(layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (160, 64)}
    for i in range(layers):
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"model.layers.{i}.self_attn.{part}"] = (64, 64)
        for part in ("gate_proj", "up_proj", "down_proj"):
            shapes[f"model.layers.{i}.mlp.{part}"] = (64, 128)
    return shapes | {"lm_head": (160, 64)}


@pytest.mark.parametrize("recipe", ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"])
@pytest.mark.parametrize("layers", [3, 16, 30])
def test_mixed_recipes_are_those_of_mlx_lm(recipe, layers):
    shapes = names(layers)

    class Model:
        def __init__(self):
            self.layers = [None] * layers

        def named_modules(self):
            return [(path, self) for path in shapes]

    model = Model()
    predicate = mixed_quant_predicate_builder(recipe, model, 64)
    plan = RECIPES[recipe](shapes, BASE)
    for path in shapes:
        assert plan[path].bits == predicate(path, model)["bits"], path


def test_attention_in_8_bits_and_mlp_in_4():
    plan = RECIPES["attention8-mlp4"](names(2), BASE)
    assert {f.bits for p, f in plan.items() if "self_attn" in p} == {8}
    assert {f.bits for p, f in plan.items() if "mlp" in p} == {4}


def test_a_smaller_group_is_taken_where_the_asked_one_does_not_fit():
    shapes = {"a": (4, 128), "b": (4, 96), "c": (4, 40)}
    plan = RECIPES["uniform"](shapes, Format(4, 128))
    assert {p: f.group_size for p, f in plan.items()} == {"a": 128, "b": 32}


def test_matrices_are_found_in_order():
    paths = [m.path for m in matrices(tiny_models.build("qwen2"))]
    layers = [int(p.split(".")[2]) for p in paths if ".layers." in p]
    assert layers == sorted(layers)
    assert {"lm_head", "model.embed_tokens"} <= set(paths)


options = st.lists(
    st.tuples(st.integers(1, 40), st.floats(0, 10)), min_size=1, max_size=4
)


@given(st.lists(options, min_size=1, max_size=4), st.integers(0, 160))
def test_the_budget_is_kept_and_nearly_all_is_won(tables, budget):
    forms = [Format(bits) for bits in (2, 3, 4, 5)]
    choices = {
        str(i): [
            FormatCost(form, nbytes, loss)
            for form, (nbytes, loss) in zip(forms, table, strict=False)
        ]
        for i, table in enumerate(tables)
    }
    totals = [
        (sum(c.nbytes for c in pick), sum(c.loss for c in pick))
        for pick in itertools.product(*choices.values())
    ]
    affordable = [loss for nbytes, loss in totals if nbytes <= budget]
    if not affordable:
        with pytest.raises(ValueError, match="smallest formats take"):
            solve(choices, budget)
        return
    plan = solve(choices, budget)
    picked = [
        next(c for c in choices[path] if c.form == form) for path, form in plan.items()
    ]
    assert sum(c.nbytes for c in picked) <= budget
    # The greedy algorithm loses at most one step of one matrix.
    step = max(max(c.loss for c in table) for table in choices.values())
    assert sum(c.loss for c in picked) <= min(affordable) + step + 1e-9


def test_bytes_go_where_they_save_most():
    choices = {
        "little": [FormatCost(Format(2), 10, 1.0), FormatCost(Format(4), 20, 0.5)],
        "much": [FormatCost(Format(2), 10, 9.0), FormatCost(Format(4), 20, 1.0)],
    }
    assert solve(choices, 30) == {"little": Format(2), "much": Format(4)}
    assert solve(choices, 40) == {"little": Format(4), "much": Format(4)}

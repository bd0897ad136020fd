"""Tuned tables: choices, their file, and that the planner follows them."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import asdict, replace

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_nibble
from mlx_nibble import _native, ops
from mlx_nibble.machine import tuned_table
from mlx_nibble.machine.tuned_table import LEAVE_TO_MLX, Choice, Key
from tests.support.graph import node_names as nodes

KEY = Key(8, 160, 128, 4, 64, "float32", "float32")


def operands(key: Key, rows: int | None = None):
    x = mx.random.normal((rows or key.rows, key.K)).astype(ops.DTYPES[key.dtype])
    w = mx.random.normal((key.N, key.K)).astype(ops.DTYPES[key.scale_dtype])
    return x, mx.quantize(w, key.group_size, key.bits)


def product(x, weights, key: Key, **options):
    form = (True, key.group_size, key.bits)
    return ops.quantized_matmul(x, *weights, *form, **options)


@pytest.mark.parametrize(
    ("rows", "largest"),
    [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (512, 512), (513, 512)],
)
def test_classes_of_rows(rows, largest):
    assert tuned_table.row_class(rows) == largest


@pytest.mark.parametrize("rows", [1, 2, 8, 64])
@pytest.mark.parametrize("form", [(4, 64), (3, 32), (8, 128)])
def test_a_choice_among_ours_changes_no_bit(rows, form):
    key = replace(KEY, rows=rows, N=1100, K=1280, bits=form[0], group_size=form[1])
    names = _native.ext.candidates(key.shape)
    assert len(names) == len(set(names)) > 1
    x, weights = operands(key)
    own = product(x, weights, key)
    for name in names:
        table = tuned_table.register({key: Choice(name)})
        assert _native.ext.chosen(key.shape, False, table) == name
        assert mx.array_equal(product(x, weights, key, tuning=table), own), name


def test_a_product_is_left_to_mlx_where_the_table_says_so():
    table = tuned_table.register({KEY: Choice(LEAVE_TO_MLX)})
    x, weights = operands(KEY)
    form = (True, KEY.group_size, KEY.bits)
    theirs = mx.quantized_matmul(x, *weights, *form)
    left = product(x, weights, KEY, tuning=table)
    assert nodes(left)["QuantizedMatmul"] == 1
    assert mx.array_equal(left, theirs)
    # For this row class only, and not if rows must be independent of each other.
    few, many = (mx.random.normal((m, KEY.K)) for m in (5, 9))
    assert nodes(product(few, weights, KEY, tuning=table))["QuantizedMatmul"] == 1
    assert "QuantizedMatmul" not in nodes(product(many, weights, KEY, tuning=table))
    held = product(x, weights, KEY, tuning=table, batch_invariant=True)
    assert mx.array_equal(held, product(x, weights, KEY))


def test_rounding_activations_is_a_candidate_that_may_lose():
    key = replace(KEY, activations="int8")
    names = _native.ext.candidates(key.shape, True)
    assert names[0].startswith("int8")
    exact = next(name for name in names if not name.startswith("int8"))
    table = tuned_table.register({key: Choice(exact)})
    x, weights = operands(key)
    chosen = product(x, weights, key, activations="int8", tuning=table)
    assert mx.array_equal(chosen, product(x, weights, key))
    held = product(
        *(x, weights, key),
        activations="int8",
        tuning=table,
        batch_invariant=True,
    )
    assert mx.array_equal(held, product(x, weights, key, activations="int8"))


@pytest.mark.parametrize("name", ["decode_n7", "abacus", "qmm_f16_f16_b4_g64"])
def test_what_is_no_candidate_is_not_followed(name):
    table = tuned_table.register({KEY: Choice(name)})
    own = _native.ext.chosen(KEY.shape)
    assert _native.ext.chosen(KEY.shape, False, table) == own
    x, weights = operands(KEY)
    assert mx.array_equal(
        product(x, weights, KEY, tuning=table), product(x, weights, KEY)
    )


def test_a_table_that_there_is_not_is_refused():
    x, weights = operands(KEY)
    with pytest.raises(ValueError, match="tuning must be the number of a table"):
        product(x, weights, KEY, tuning=10**6)


def test_gradients_and_vmap_pass_through_a_choice():
    table = tuned_table.register(
        {KEY: Choice("panel_n64"), replace(KEY, rows=1): Choice("mlx")}
    )
    x, weights = operands(KEY)

    def loss(x, tuning):
        return (product(x, weights, KEY, tuning=tuning) ** 2).sum()

    own, chosen = (mx.grad(loss)(x, number) for number in (0, table))
    assert mx.allclose(own, chosen, rtol=1e-5, atol=1e-5)
    batch = mx.random.normal((3, 8, KEY.K))
    mapped = mx.vmap(lambda x: product(x, weights, KEY, tuning=table))(batch)
    assert mx.allclose(mapped, product(batch, weights, KEY), rtol=1e-5, atol=1e-5)


def test_a_table_is_kept_and_added_to(tables):
    assert tuned_table.load() == {} and tuned_table.in_use() == (0, {})
    other = replace(KEY, rows=1)
    tuned_table.save({KEY: Choice("mlx", 1.5)})
    tuned_table.save({other: Choice(None)})
    assert tuned_table.load() == {KEY: Choice("mlx", 1.5), other: Choice(None)}
    number, table = tuned_table.in_use()
    assert number > 0 and table == tuned_table.load()
    assert tuned_table.in_use()[0] == number
    tuned_table.save({KEY: Choice("panel_n32", 1.1)})
    assert tuned_table.in_use()[0] != number
    assert [path.name for path in tables.iterdir()] == [tuned_table.path().name]
    assert tuned_table.clear() == tuned_table.path()
    assert tuned_table.clear() is None and tuned_table.in_use() == (0, {})


def _damaged(stored):
    entry = stored["choices"][0]
    yield {**stored, "schema": "mlx-nibble/tuned/0"}
    yield {**stored, "machine": {**stored["machine"], "name": "another"}}
    yield {**stored, "machine": {**stored["machine"], "mlx": "0.1"}}
    yield {**stored, "choices": 7}
    yield {**stored, "choices": [7]}
    yield {"schema": stored["schema"], "machine": stored["machine"]}
    for change in (
        {"rows": 0},
        {"rows": True},
        {"N": 1.5},
        {"K": 2**40},
        {"dtype": "float64"},
        {"scale_dtype": ["float32"]},
        {"symmetric": 1},
        {"activations": "int4"},
        {"name": "../../etc"},
        {"name": 5},
        {"experts": -1},
        {"experts": True},
        {"sorted": 0},
        {"by": "me"},
        {"faster": 0},
        {"faster": "2"},
        {"more": 1},
    ):
        yield {**stored, "choices": [{**entry, **change}]}


def test_a_strange_table_is_ignored_with_one_warning(tables):
    path = tuned_table.save({KEY: Choice("mlx", 2.0)})
    damaged = [json.dumps(d) for d in _damaged(json.loads(path.read_text()))]
    for text in [
        *damaged,
        "",
        "{",
        "[" * 100_000,
        "null",
        '{"choices": NaN}',
        "\udc80",
    ]:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.warns(RuntimeWarning, match="does not use the tuned table") as seen:
            assert tuned_table.in_use() == (0, {}), text
        assert len(seen) == 1 and str(path) in str(seen[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tuned_table.in_use() == (0, {}) and tuned_table.load() == {}
    # A new table takes its place.
    tuned_table.save({KEY: Choice("mlx", 2.0)})
    assert tuned_table.load() == {KEY: Choice("mlx", 2.0)}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(128, 160, bias=False), nn.Linear(160, 128)]
        nn.quantize(self, 32, 4)
        mx.eval(self.parameters())

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_accelerate_follows_the_table_unless_told_not_to(tables):
    model = Model()
    key = replace(KEY, group_size=32)
    tuned_table.save({key: Choice(LEAVE_TO_MLX, 1.2)})
    x = mx.random.normal((8, 128))
    report = mlx_nibble.accelerate(model)
    assert report.tuned == 1 and "1 of them by choices of nibble tune" in str(report)
    assert nodes(model(x))["QuantizedMatmul"] == 1
    report.undo()
    report = mlx_nibble.accelerate(model, tuned=False)
    assert report.tuned == 0 and "tune" not in str(report)
    assert "QuantizedMatmul" not in nodes(model(x))
    # A second accelerate() follows the table as it is by then.
    mlx_nibble.accelerate(model)
    assert nodes(model(x))["QuantizedMatmul"] == 1
    tuned_table.clear()
    mlx_nibble.accelerate(model)
    assert "QuantizedMatmul" not in nodes(model(x))


def test_a_strange_table_keeps_nobody_from_accelerating(tables):
    tuned_table.path().parent.mkdir()
    tuned_table.path().write_text("[1, 2")
    with pytest.warns(RuntimeWarning, match="does not use the tuned table"):
        report = mlx_nibble.accelerate(Model())
    assert len(report.swapped) == 2 and report.tuned == 0


def test_importing_reads_no_table(tables):
    tuned_table.path().parent.mkdir()
    tuned_table.path().write_text("[1, 2")
    command = [sys.executable, "-W", "error", "-c", "import mlx_nibble"]
    assert subprocess.run(command).returncode == 0


def test_the_table_is_a_json_file_that_says_what_it_is(tables):
    stored = json.loads(tuned_table.save({KEY: Choice("mlx", 1.5)}).read_text())
    assert stored["schema"] == tuned_table.SCHEMA
    assert stored["machine"] == tuned_table.machine()
    choice = {"name": "mlx", "faster": 1.5, "by": "tune"}
    assert stored["choices"] == [asdict(KEY) | choice]


def test_a_duel_does_not_replace_what_tune_chose(tables):
    other = replace(KEY, rows=1)
    duels = {KEY: Choice(LEAVE_TO_MLX, 1.2, "duel"), other: Choice(None, 1.3, "duel")}
    tuned_table.save(duels)
    assert tuned_table.load() == duels and tuned_table.in_use() == (0, {})
    tuned_table.save({KEY: Choice(None)})
    tuned_table.save(duels)
    assert tuned_table.load() == duels | {KEY: Choice(None)}
    assert tuned_table.in_use()[1] == {KEY: Choice(None)}

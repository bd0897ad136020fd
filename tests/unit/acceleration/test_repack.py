"""Repacked weights: the same results, and no copy outlives its arrays."""

from __future__ import annotations

import gc

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import generate_step

import mlx_nibble
from mlx_nibble import _native, lm, ops
from mlx_nibble.acceleration.repack import Copies
from mlx_nibble.formats import GROUP_SIZES
from tests.support import tiny_models

pytestmark = pytest.mark.skipif(
    _native.ext is None or mx.default_device().type != mx.DeviceType.cpu,
    reason="copies are the CPU's",
)


def layer(bits: int = 4, group_size: int = 64, rows: int = 96) -> nn.QuantizedLinear:
    linear = nn.Linear(256, rows)
    linear.weight = mx.random.uniform(-1, 3, (rows, 256))  # nothing symmetric
    made = linear.to_quantized(group_size, bits)
    mx.eval(made.parameters())
    return made


def both(made: nn.Module, x: mx.array, **settings) -> tuple[mx.array, mx.array]:
    """Return a layer's results without copies, and with them."""
    plain = mlx_nibble.accelerate(made, **settings)
    expected = made(x)
    mx.eval(expected)
    plain.undo()
    report = mlx_nibble.accelerate(made, repack=True, **settings)
    got = made(x)
    mx.eval(got)
    assert report.repacked.nbytes_so_far == report.repacked.nbytes
    report.undo()
    return expected, got


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_the_bits_are_the_same(bits, group_size, rows, activations):
    x = mx.random.normal((rows, 256))
    expected, got = both(layer(bits, group_size), x, activations=activations)
    assert mx.array_equal(expected, got)


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_what_does_not_lie_in_bytes_has_no_copy(bits):
    made = layer(bits)
    report = mlx_nibble.accelerate(made, repack=True)
    assert report.repacked.nbytes == 0
    mx.eval(made(mx.ones((1, 256))))
    assert report.repacked.nbytes_so_far == 0


def test_a_copy_is_made_by_the_first_product_and_counted():
    made = layer()
    report = mlx_nibble.accelerate(made, repack=True)
    stored = sum(made[name].nbytes for name in ("weight", "scales", "biases"))
    assert report.repacked.nbytes == stored  # whole strips of rows
    assert report.repacked.nbytes_so_far == 0
    assert "0.0 MB now" in str(report)
    mx.eval(made(mx.ones((1, 256))))
    assert report.repacked.nbytes_so_far == stored
    copies = report.repacked
    report.undo()
    assert report.repacked is None
    assert copies.nbytes == copies.nbytes_so_far == 0
    assert "repacked" not in str(report)


def test_nothing_is_copied_unless_asked_for():
    report = mlx_nibble.accelerate(layer())
    assert report.repacked is None


def test_a_copy_goes_with_its_layer():
    made = layer()
    copies = Copies([(*weights(made), 4, 64)])
    mx.eval(ops.quantized_matmul(mx.ones((1, 256)), *weights(made)))
    assert copies.nbytes_so_far > 0
    del made
    gc.collect()
    assert copies.nbytes == 0


def weights(made: nn.QuantizedLinear) -> list[mx.array]:
    return [made.weight, made.scales, made.biases]


@pytest.mark.parametrize("name", ["weight", "scales", "biases"])
@pytest.mark.parametrize("how", ["assigned", "updated", "written to"])
def test_new_weights_are_never_read_from_an_old_copy(name, how):
    made, other = layer(), layer()
    report = mlx_nibble.accelerate(made, repack=True)
    x = mx.random.normal((1, 256))
    mx.eval(made(x))
    if how == "assigned":
        made[name] = other[name]
    elif how == "updated":
        made.update({name: other[name]})
    else:
        made[name][3:90] = other[name][3:90]
    y = made(x)
    gc.collect()
    expected = ops.quantized_matmul(x, *map(mx.array, weights(made))) + made.bias
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    if how != "written to":  # the array is still referenced there, with other values
        assert report.repacked.nbytes == 0


def test_what_training_changes_is_read_anew():
    """Training as in DWQ: an optimizer changes scales and biases."""
    made = layer()
    report = mlx_nibble.accelerate(made, repack=True)
    x = mx.random.normal((1, 256))
    before = made(x)

    def loss(parameters: dict) -> mx.array:
        made.update(parameters)
        return (made(x) ** 2).sum()

    trained = {name: made[name] for name in ("scales", "biases")}
    gradients = mx.grad(loss)(trained)
    made.update(tree_map(lambda p, g: p - 1e-3 * g, trained, gradients))
    after = made(x)
    report.undo()
    plain = mlx_nibble.accelerate(made)
    assert mx.array_equal(after, made(x)) and not mx.array_equal(after, before)
    plain.undo()


def test_gradients_are_the_same():
    x = mx.random.normal((3, 256))
    made = layer()

    def gradient(repack: bool) -> mx.array:
        report = mlx_nibble.accelerate(made, repack=repack)
        found = mx.grad(lambda x: made(x).sum())(x)
        mx.eval(found)
        report.undo()
        return found

    found = [gradient(repack) for repack in (False, True)]
    assert mx.array_equal(*found)


def test_nothing_is_saved(tmp_path):
    made = layer()
    before = dict(tree_flatten(made.parameters()))
    report = mlx_nibble.accelerate(made, repack=True)
    mx.eval(made(mx.ones((1, 256))))
    made.save_weights(str(tmp_path / "w.safetensors"))
    saved = mx.load(str(tmp_path / "w.safetensors"))
    assert saved.keys() == before.keys()
    assert all(mx.array_equal(saved[name], before[name]) for name in saved)
    del before
    made.load_weights(str(tmp_path / "w.safetensors"))  # other arrays: no copy
    gc.collect()
    assert report.repacked.nbytes == 0


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text"])
@pytest.mark.parametrize("activations", [None, "int8"])
def test_a_model_says_the_same_and_forgets_all_with_it(family, activations):
    model = tiny_models.build(family)
    nn.quantize(model, 32, 4)
    prompt = mx.array([3, 1, 4, 1, 5, 9, 2, 6])
    answers = []
    for repack in (False, True):
        report = mlx_nibble.accelerate(model, activations=activations, repack=repack)
        steps = generate_step(prompt, model, max_tokens=6)
        answers.append([(token, np.array(p)) for token, p in steps])
        if repack:
            assert 0 < report.repacked.nbytes_so_far <= report.repacked.nbytes
        report.undo()
    for (token, p), (other, q) in zip(*answers, strict=True):
        assert token == other
        np.testing.assert_array_equal(p, q)


def test_prepared_models_have_copies_of_the_arrays_they_end_up_with():
    model = tiny_models.build("llama")
    nn.quantize(model, 32, 4)
    model.set_dtype(mx.float16)
    lm.prepare(model, mlx_nibble.Settings(repack=True))
    report = mlx_nibble.accelerate(model, repack=True)
    mx.eval(model(mx.array([[1, 2, 3]])))
    # All copies but the embedding's, unless the embedding is the head, too.
    assert report.repacked.nbytes_so_far > report.repacked.nbytes / 2
    report.undo()

"""Repacked weights: the same results, and the arrays for whoever asks for them."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import generate_step
from mlx_lm.tuner.lora import LoRALinear

import mlx_nibble
from mlx_nibble import _native, lm, ops
from mlx_nibble.acceleration.repack import NAMES, is_packed, pack
from mlx_nibble.formats import BITS, GROUP_SIZES
from tests.support import tiny_models
from tests.support.mlx_formats import MLX_BITS

pytestmark = pytest.mark.skipif(
    _native.ext is None or mx.default_device().type != mx.DeviceType.cpu,
    reason="only a CPU's weights are repacked",
)


def layer(
    bits: int = 4, group_size: int = 64, rows: int = 96, symmetric: bool = False
) -> nn.QuantizedLinear:
    made = nn.Linear(256, rows).to_quantized(group_size, bits)
    if symmetric:
        made.biases = -(2.0 ** (bits - 1)) * made.scales
    else:
        made.biases += 0.25 * made.scales  # MLX's formats of 2 bits are symmetric
    mx.eval(made.parameters())
    return made


def contents(made: nn.Module) -> dict[str, np.ndarray]:
    return {
        name: np.array(mx.view(a, mx.uint32))
        for name, a in tree_flatten(made.parameters())
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def both(made: nn.Module, x: mx.array, **settings) -> tuple[mx.array, mx.array]:
    """Return a layer's results as it lies, and repacked."""
    plain = mlx_nibble.accelerate(made, repack=False, **settings)
    expected = made(x)
    mx.eval(expected)
    plain.undo()
    report = mlx_nibble.accelerate(made, **settings)
    got = made(x)
    mx.eval(got)
    assert is_packed(made.weight)  # no product unpacks
    report.undo()
    return expected, got


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("bits", MLX_BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_the_bits_are_the_same(bits, group_size, rows, activations):
    x = mx.random.normal((rows, 256))
    expected, got = both(layer(bits, group_size), x, activations=activations)
    assert mx.array_equal(expected, got)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("bits", MLX_BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_undo_gives_back_the_same_words(bits, group_size, symmetric, dtype):
    made = layer(bits, group_size, 112, symmetric)
    made.set_dtype(dtype)
    before = contents(made)
    report = mlx_nibble.accelerate(made)
    assert is_packed(made.weight) and is_packed(made.scales)
    assert is_packed(made.biases) != symmetric
    report.undo()
    assert not any(map(is_packed, made.parameters().values()))
    assert same(contents(made), before)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("groups", [1, 3, 4])
def test_any_words_come_back_from_a_part_of_a_strip(bits, group_size, groups):
    """1009 rows end within a strip, and an odd number of groups within a vector."""
    rng = np.random.default_rng(0)
    words = rng.integers(2**32, size=(1009, groups * group_size * bits // 32))
    w = mx.array(words.astype(np.uint32))
    scales, biases = mx.random.normal((2, 1009, groups))
    mx.eval(w, scales, biases)
    matrix, nbytes = pack(w, scales, biases, bits, group_size)
    assert nbytes <= 1.02 * sum(a.nbytes for a in (w, scales, biases))
    for array, expected in zip(matrix, (w, scales, biases), strict=True):
        assert is_packed(array)
        np.testing.assert_array_equal(array, expected)


def test_a_matrix_that_padding_would_make_larger_stays():
    made = layer(rows=3)
    assert mlx_nibble.accelerate(made).repacked.layers == 0


def test_nothing_moves_without_repack():
    made = layer()
    arrays = [made[name] for name in NAMES]
    report = mlx_nibble.accelerate(made, repack=False)
    mx.eval(made(mx.ones((1, 256))))
    assert report.repacked is None
    assert all(made[name] is a for name, a in zip(NAMES, arrays, strict=True))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_exact_products_read_e4m3_as_it_lies(dtype):
    made = nn.Sequential(nn.Linear(256, 96), nn.RMSNorm(96))
    made.set_dtype(dtype)
    nn.quantize(made, 32, 8, mode="mxfp8")
    matrix = made.layers[0]
    if pack(matrix.weight, matrix.scales, None, 8, 32, "mxfp8") is None:
        pytest.skip("this processor reads E4M3 as it lies")
    report = mlx_nibble.accelerate(made)
    assert is_packed(matrix.weight) == (dtype == mx.bfloat16)
    report.undo()
    mlx_nibble.accelerate(made, activations="int16")
    assert is_packed(matrix.weight)


def test_the_report_counts_what_is_repacked_now():
    made = layer()
    nbytes = sum(made[name].nbytes for name in NAMES)
    calls = []
    report = mlx_nibble.accelerate(made, progress=lambda *call: calls.append(call))
    assert calls == [("repack weights", 0, 1), ("repack weights", 1, 1)]
    assert report.repacked.layers == 1 and report.repacked.nbytes == nbytes
    assert "1 of them repacked in place" in str(report)
    mx.eval(made.parameters())
    assert report.repacked.layers == report.repacked.nbytes == 0


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_no_byte_is_kept_twice(bits):
    layers = [layer(bits, rows=2048) for _ in range(8)]
    model = nn.Sequential(*layers)
    mx.eval(model.parameters())
    mx.clear_cache()
    before = mx.get_active_memory()
    mlx_nibble.accelerate(model)
    mx.clear_cache()
    assert mx.get_active_memory() <= 1.02 * before
    mx.eval([each(mx.ones((1, 256))) for each in layers])
    mx.clear_cache()
    assert mx.get_active_memory() <= 1.02 * before
    mx.eval(model.parameters())
    mx.clear_cache()
    assert mx.get_active_memory() <= 1.02 * before


@pytest.mark.parametrize("evaluated", ["all", "weight", "scales", "biases"])
@pytest.mark.parametrize("rows", [1, 7])
def test_evaluated_arrays_are_read_as_they_lie(evaluated, rows):
    made, x = layer(), mx.random.normal((rows, 256))
    before = contents(made)
    mlx_nibble.accelerate(made)
    expected = made(x)
    mx.eval(expected)
    mx.eval(made.parameters() if evaluated == "all" else made[evaluated])
    assert mx.array_equal(made(x), expected)
    assert not is_packed(made[evaluated if evaluated != "all" else "weight"])
    assert same(contents(made), before)
    mlx_nibble.accelerate(made)  # repacks what was evaluated
    assert is_packed(made.weight)
    assert mx.array_equal(made(x), expected)


def test_arrays_outlive_their_layer():
    made = layer()
    before = contents(made)
    mlx_nibble.accelerate(made)
    y, w = made(mx.ones((1, 256))), made.weight
    del made
    gc.collect()
    assert mx.isfinite(y).all()
    assert np.array_equal(np.array(w), before["weight"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["assigned", "updated", "written to"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_new_weights_are_never_mixed_with_old_ones(name, how, symmetric):
    made, other = layer(symmetric=symmetric), layer()
    mlx_nibble.accelerate(made)
    x = mx.random.normal((1, 256))
    mx.eval(made(x))
    if how == "assigned":
        made[name] = other[name]
    elif how == "updated":
        made.update({name: other[name]})
    else:
        made[name][3:90] = other[name][3:90]
    y = made(x)
    plain = [mx.array(np.array(made[n])) for n in NAMES]
    expected = ops.quantized_matmul(x, *plain) + made.bias
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_training_scales_and_biases():
    """Training as in DWQ: an optimizer changes scales and biases."""

    def trained(repack: bool) -> list[np.ndarray]:
        mx.random.seed(0)
        made, x = layer(), mx.random.normal((3, 256))
        mlx_nibble.accelerate(made, repack=repack)
        made.unfreeze(keys=["scales", "biases"])
        step = nn.value_and_grad(made, lambda: (made(x) ** 2).sum())
        optimizer = optim.SGD(1e-5)
        for _ in range(3):
            _, gradients = step()
            optimizer.update(made, gradients)
        return [np.array(made(x)), *contents(made).values()]

    for got, expected in zip(trained(True), trained(False), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_training_an_adapter_and_fusing_it():
    def trained(repack: bool) -> tuple[np.ndarray, ...]:
        mx.random.seed(0)
        made, x = nn.Sequential(layer(), nn.ReLU()), mx.random.normal((3, 256))
        mlx_nibble.accelerate(made, repack=repack)
        made.layers[0] = LoRALinear.from_base(made.layers[0], r=4)
        step = nn.value_and_grad(made, lambda: (made(x) ** 2).sum())
        optimizer = optim.SGD(1e-4)
        for _ in range(3):
            _, gradients = step()
            optimizer.update(made, gradients)
            mx.eval(made.state)  # as mlx-lm's trainer does
        fused = made.layers[0].fuse()
        return np.array(made(x)), np.array(fused(x)), np.array(fused.weight)

    for got, expected in zip(trained(True), trained(False), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("bits", [4, 5])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_and_transformations_are_the_same(symmetric, bits):
    mx.random.seed(0)
    x, made = mx.random.normal((3, 256)), layer(bits, symmetric=symmetric)

    def results(repack: bool) -> list[mx.array]:
        report = mlx_nibble.accelerate(made, repack=repack)
        found = [
            mx.grad(lambda x: made(x).sum())(x),
            *mx.jvp(made, [x], [x])[1],
            mx.vmap(made)(x),
            mx.compile(made)(x),
            made(x[0]),
        ]
        mx.eval(found)
        if repack:
            assert is_packed(made.weight)  # a backward pass unpacks for itself
        report.undo()
        return found

    for plain, repacked in zip(results(False), results(True), strict=True):
        assert mx.array_equal(plain, repacked)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_saving_and_loading(tmp_path, suffix, bits):
    made = layer(bits)
    before = contents(made)
    mlx_nibble.accelerate(made)
    file = str(tmp_path / f"w.{suffix}")
    made.save_weights(file)
    saved = {n: np.array(mx.view(a, mx.uint32)) for n, a in mx.load(file).items()}
    assert same(saved, before)
    made.load_weights(file)
    assert same(contents(made), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.loads])
@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_copies_and_pickles(duplicate, bits):
    made, x = layer(bits), mx.random.normal((2, 256))
    before = contents(made)
    mlx_nibble.accelerate(made)
    expected = made(x)
    mx.eval(expected)
    other = duplicate(pickle.dumps(made) if duplicate is pickle.loads else made)
    assert mx.allclose(other(x), expected, rtol=1e-5, atol=1e-5)
    assert same(contents(other), before)


def test_any_thread_computes_and_evaluates():
    made, x = layer(), mx.random.normal((2, 256))
    before = contents(made)
    mlx_nibble.accelerate(made)
    expected = np.array(made(x))
    found: list = []

    def run() -> None:
        try:
            found.append(np.array(made(mx.array(np.array(x)))))
            found.append(contents(made))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert np.array_equal(found[0], expected)
    assert same(found[1], before)


@pytest.mark.parametrize("turn", range(8))
def test_threads_compute_while_another_evaluates(turn):
    """MLX does not let two threads evaluate one array."""
    made = layer(rows=512)
    mlx_nibble.accelerate(made)
    x = np.array(mx.random.normal((1, 256)))
    expected = np.array(made(mx.array(x)))
    wrong: list = []

    def compute() -> None:
        for _ in range(50):
            got = np.array(made(mx.array(x)))
            if not np.array_equal(got, expected):
                wrong.append(got)

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    mx.eval(made.parameters())
    for thread in threads:
        thread.join()
    assert not wrong


def test_layers_that_share_arrays_still_do():
    first, second = layer(), layer()
    second.update({name: first[name] for name in NAMES})
    model = nn.Sequential(first, second)
    mlx_nibble.accelerate(model)
    assert is_packed(first.weight) and first.weight is second.weight


@pytest.mark.parametrize("bits", [4, 6])
def test_a_product_by_the_matrix_itself(bits):
    """MLA multiplies one matrix from both sides."""
    made, y = layer(bits), mx.random.normal((2, 96))
    form = {"bits": bits, "transpose": False}
    expected = ops.quantized_matmul(y, *(made[n] for n in NAMES), **form)
    mx.eval(expected)
    mlx_nibble.accelerate(made)
    got = ops.quantized_matmul(y, *(made[n] for n in NAMES), **form)
    assert mx.array_equal(got, expected)


def test_batches_that_no_packed_product_fits():
    w, scales, biases = mx.quantize(mx.random.normal((2, 1, 64, 256)))
    x = mx.random.normal((2, 3, 4, 256))
    expected = ops.quantized_matmul(x, w, scales, biases)
    mx.eval(expected)
    (matrix, _) = pack(w, scales, biases, 4, 64)
    assert mx.array_equal(ops.quantized_matmul(x, *matrix), expected)


@pytest.mark.parametrize("index", [[5], [-1], [[1, 2], [95, -96]]])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_an_embedding_looks_up_rows_without_unpacking(index, bits):
    made = nn.Embedding(96, 256).to_quantized(64, bits)
    mx.eval(made.parameters())
    rows = mx.array(index, mx.int32)
    plain = mlx_nibble.accelerate(made, repack=False)
    expected = made(rows)
    mx.eval(expected)
    plain.undo()
    mlx_nibble.accelerate(made)
    got = made(rows)
    mx.eval(got)
    assert is_packed(made.weight)
    assert mx.array_equal(got, expected)
    several = mx.array([[1, 2], [3, 95]])
    assert mx.array_equal(mx.vmap(made)(several), made(several))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text", "deepseek_v3"])
@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("bits", [4, 5])
def test_a_model_says_the_same(family, activations, bits):
    model = tiny_models.build(family)
    nn.quantize(model, 32, bits)
    before = contents(model)
    prompt = mx.array([3, 1, 4, 1, 5, 9, 2, 6])
    answers = []
    for repack in (False, True):
        report = mlx_nibble.accelerate(model, activations=activations, repack=repack)
        steps = generate_step(prompt, model, max_tokens=6)
        answers.append([(token, np.array(p)) for token, p in steps])
        if repack:
            assert report.repacked.layers > 0
        report.undo()
    assert same(contents(model), before)
    for (token, p), (other, q) in zip(*answers, strict=True):
        assert token == other
        np.testing.assert_array_equal(p, q)


def test_prepared_models_are_repacked_after_the_cast():
    model = tiny_models.build("llama")
    nn.quantize(model, 32, 4)
    model.set_dtype(mx.float16)
    report = lm.prepare(model)
    mx.eval(model(mx.array([[1, 2, 3]])))
    quantized = [m for m in model.modules() if "scales" in m]
    assert report.repacked.layers == len(quantized)
    report.undo()
    assert tree_map(is_packed, model.parameters()) is not None

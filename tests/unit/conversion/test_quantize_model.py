"""Quantization of whole models: any family, any interruption, any loader."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_nibble.conversion.quantizer import quantize_model
from mlx_nibble.conversion.sensitivity import sensitivity
from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.evaluation.calibration_text import batches
from mlx_nibble.evaluation.evaluate import evaluate
from mlx_nibble.formats import Format
from mlx_nibble.layerwise import rows
from mlx_nibble.layerwise.cpu_math import fast_dense
from mlx_nibble.layerwise.matrices import matrices
from mlx_nibble.quantize.method import Method
from tests.support import tiny_models
from tests.support.arrays import to_numpy

pytestmark = pytest.mark.slow

FORM = Format(4, 32, "float32")
PLAIN = Method("affine", gptq=False, sweeps=0)


def plan(model: nn.Module, form: Format = FORM) -> dict[str, Format]:
    return {m.path: form for m in matrices(model) if form.fits(m.inputs)}


def load_back(family: str, parameters: dict, formats: dict[str, Format]) -> nn.Module:
    """Build the quantized model as mlx-lm does."""
    model = tiny_models.build(family, seed=5)

    def predicate(path: str, _: nn.Module):
        form = formats.get(path)
        return form and {"group_size": form.group_size, "bits": form.bits}

    nn.quantize(model, class_predicate=predicate)
    model.load_weights(list(parameters.items()), strict=True)
    return model


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_numpy_computes_what_mlx_does(family):
    model, (tokens,) = tiny_models.build(family), tiny_models.tokens(1)
    expected = to_numpy(model(tokens))
    with fast_dense():
        fast = to_numpy(model(tokens))
    # Three layers of float32 sums of at most 160 terms.
    np.testing.assert_allclose(fast, expected, atol=1e-4 * abs(expected).max())
    np.testing.assert_array_equal(to_numpy(model(tokens)), expected)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_is_quantized_and_loads_in_mlx_lm(family, tmp_path):
    model, tokens = tiny_models.build(family), tiny_models.tokens()
    reference = tiny_models.build(family)
    formats = plan(model)
    assert any("layers.0" in path for path in formats)
    workspace = Workspace(tmp_path / "out", {})
    parameters = quantize_model(model, formats, Method(), tokens, workspace)
    ours = load_back(family, parameters, formats)
    rounded = tiny_models.build(family)
    nn.quantize(rounded, class_predicate=lambda path, _: path in formats and FORM_DICT)
    test = tiny_models.tokens(4, seed=9)
    kl = [evaluate(m, test, reference).comparison.kl.mean for m in (ours, rounded)]
    assert kl[0] < kl[1]


FORM_DICT = {"group_size": FORM.group_size, "bits": FORM.bits}


def test_without_calibration_it_is_what_mlx_lm_convert_makes(tmp_path):
    model = tiny_models.build("llama")
    formats = plan(model)
    workspace = Workspace(tmp_path / "out", {})
    parameters = quantize_model(model, formats, PLAIN, [], workspace)
    expected = tiny_models.build("llama")
    nn.quantize(expected, FORM.group_size, FORM.bits)
    from mlx.utils import tree_flatten

    for path, value in tree_flatten(expected.parameters()):
        assert parameters[path].dtype == value.dtype, path
        np.testing.assert_array_equal(np.array(parameters[path]), np.array(value))


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_killed_run_goes_on_where_it_was(after, tmp_path):
    tokens = tiny_models.tokens()

    def run(name: str, progress) -> dict[str, mx.array]:
        model = tiny_models.build("llama")
        workspace = Workspace(tmp_path / name, {"run": 1})
        return quantize_model(model, plan(model), Method(), tokens, workspace, progress)

    seen: list[tuple[str, int]] = []

    def kill(what: str, done: int, total: int) -> None:
        if what == "Quantizing" and done == after:
            raise Killed

    def watch(what: str, done: int, total: int) -> None:
        seen.append((what, done))

    with pytest.raises(Killed):
        run("killed", kill)
    resumed = run("killed", watch)
    assert ("Quantizing", after) in seen
    assert ("Quantizing", after - 1) not in seen
    whole = run("whole", lambda *_: None)
    assert resumed.keys() == whole.keys()
    for path, value in whole.items():
        np.testing.assert_array_equal(np.array(resumed[path]), np.array(value))


def test_other_settings_start_anew(tmp_path):
    workspace = Workspace(tmp_path / "out", {"bits": 4})
    workspace.save_part("outside", {"a": mx.ones(3)})
    assert Workspace(tmp_path / "out", {"bits": 4}).has_part("outside")
    assert not Workspace(tmp_path / "out", {"bits": 3}).has_part("outside")


def test_layers_of_another_plan_are_dropped(tmp_path):
    workspace = Workspace(tmp_path / "out", {})
    workspace.save_record("sensitivity-a", [1.5])
    workspace.keep_plan({"a": 4})
    workspace.save_part("layer-00000", {"a": mx.ones(3)})
    workspace.finish_layer(1)
    again = Workspace(tmp_path / "out", {})
    again.keep_plan({"a": 4})
    assert again.finished == 1 and again.has_part("layer-00000")
    again.keep_plan({"a": 3})
    assert again.finished == 0 and not again.has_part("layer-00000")
    assert Workspace(tmp_path / "out", {}).finished == 0
    assert again.load_record("sensitivity-a") == [1.5]


def test_matrices_that_are_not_only_multiplied_are_told(tmp_path):
    class Doubled(nn.Linear):
        def __call__(self, x):
            return 2 * super().__call__(x)

    model, tokens = tiny_models.build("llama"), tiny_models.tokens()
    model.layers[1].mlp.down_proj.__class__ = Doubled
    method, told = Method(), []
    workspace = Workspace(tmp_path / "out", {})
    quantize_model(model, plan(model), method, tokens, workspace, tell=told.append)
    assert [t for t in told if "layers.1.mlp.down_proj" in t] == told != []
    assert told[0].startswith("Without calibration: 1 of ")


def test_products_of_a_gpu_are_products(monkeypatch):
    """Operands of 11 bits, as NVIDIA's TF32 and Apple's neural units round them."""
    rng = np.random.default_rng(0)
    module = nn.Linear(576, 64, bias=False)
    x = rng.standard_normal((64, 576)).astype(np.float32)
    w = np.array(module.weight)

    def rounded(a):
        return (a.view(np.uint32) + np.uint32(1 << 12) & ~np.uint32(0x1FFF)).view(
            np.float32
        )

    result = mx.array(rounded(x) @ rounded(w).T)
    found = rows.rows(module, mx.array(x))
    assert found is not None
    assert not rows.is_product(module, found, result)
    monkeypatch.setattr(rows.mx, "default_device", lambda: mx.Device(mx.gpu))
    assert rows.is_product(module, found, result)
    assert not rows.is_product(module, found, 1.01 * result)


def test_layers_are_dropped_when_finished(tmp_path):
    model = tiny_models.build("llama")
    workspace = Workspace(tmp_path / "out", {})
    quantize_model(model, plan(model), Method(), tiny_models.tokens(), workspace)
    assert all(not p.size for _, p in _arrays(model.layers[0]))


def _arrays(module: nn.Module):
    from mlx.utils import tree_flatten

    return tree_flatten(module.parameters())


def test_sensitivity_prefers_more_bits_where_they_matter(tmp_path):
    model, tokens = tiny_models.build("llama"), tiny_models.tokens(2)
    forms = [Format(b, 32, "float32") for b in (2, 4, 8)]
    before = to_numpy(model(tokens[0]))
    # Rows of 64 inputs are no multiple of 128: groups of 64 are measured instead.
    measured = [Format(b, 128, "float32") for b in (2, 4)]
    workspace = Workspace(tmp_path / "out", {})
    choices = sensitivity(model, tokens, measured, forms, workspace)
    np.testing.assert_allclose(to_numpy(model(tokens[0])), before)
    assert set(choices) == {m.path for m in matrices(model)}
    for options in choices.values():
        losses = [c.loss for c in sorted(options, key=lambda c: c.nbytes)]
        assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("after", [0, 1, 5, 13])
def test_a_killed_measurement_goes_on_where_it_was(after, tmp_path):
    """There are seven blocks (attention and MLP of three layers, the embedding)."""
    tokens = tiny_models.tokens(1)
    measured = [Format(b, 32, "float32") for b in (2, 4)]
    forms = [Format(b, g, "float32") for b in (2, 4, 8) for g in (32, 64)]
    total = 7 * len(measured)

    def run(name: str, progress, settings: int = 1):
        workspace = Workspace(tmp_path / name, {"run": settings})
        model = tiny_models.build("llama")
        return sensitivity(model, tokens, measured, forms, workspace, progress)

    def kill(what: str, done: int, total: int) -> None:
        if done == after:
            raise Killed

    def watch(seen: list[int]):
        return lambda what, done, total: seen.append(done)

    with pytest.raises(Killed):
        run("killed", kill)
    resumed: list[int] = []
    choices = run("killed", watch(resumed))
    assert resumed == list(range(after - after % 2, total + 1))
    again: list[int] = []
    assert run("killed", watch(again)) == choices
    assert again == []
    whole: list[int] = []
    assert run("whole", watch(whole)) == choices
    other: list[int] = []
    run("killed", watch(other), settings=2)
    assert other == whole == list(range(total + 1))


def test_evaluation_of_known_predictions():
    """The vocabulary has two tokens of known probabilities."""

    def model(p: float):
        return lambda t: mx.broadcast_to(mx.log(mx.array([1 - p, p])), (*t.shape, 2))

    ones = mx.ones((2, 6), mx.int32)
    got = evaluate(model(0.25), [ones], model(0.75))
    assert got.tokens == 10
    assert got.perplexity.mean == pytest.approx(4, rel=1e-6)
    assert got.reference_perplexity.mean == pytest.approx(4 / 3, rel=1e-6)
    assert got.comparison.increase.mean == pytest.approx(2, rel=1e-6)
    assert got.comparison.agreement.mean == 0
    kl = 0.75 * np.log(3) - 0.25 * np.log(3)
    assert got.comparison.kl.mean == pytest.approx(kl, rel=1e-5)
    assert got.perplexity.error == pytest.approx(0, abs=1e-6)


def test_sequences_are_spread_over_the_text():
    got = batches(range(100), 10, 4)
    assert [b.tolist()[0][0] for b in got] == [0, 20, 50, 70]
    assert len(batches(range(100), 10, 99)) == 10
    with pytest.raises(ValueError, match="at least 101 tokens"):
        batches(range(100), 101, 1)
    for length, samples in ((0, 1), (10, 0)):
        with pytest.raises(ValueError, match="must be at least 1 but are"):
            batches(range(100), length, samples)


def test_workspace_files_are_whole_or_absent(tmp_path):
    workspace = Workspace(tmp_path / "out", {})
    workspace.save_part("layer-00000", {"w": mx.ones(4)})
    workspace.finish_layer(1)
    names = {p.name for p in workspace.folder.iterdir()}
    assert not any(name.startswith("partial") for name in names)
    again = Workspace(tmp_path / "out", {})
    assert again.finished == 1
    assert again.has_part("layer-00000")
    assert json.loads((workspace.folder / "progress.json").read_text())

"""accelerate(): swapped layers, kept layers, and undo()."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

import mlx_nibble
from mlx_nibble import _native


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(96, 128)
        self.layers = [nn.Linear(128, 128, bias=i == 0) for i in range(3)]
        self.norm = nn.RMSNorm(128)

    def __call__(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.embed.as_linear(self.norm(x))


def quantized_model(**kwargs):
    model = Model()
    nn.quantize(model, **({"group_size": 64, "bits": 4} | kwargs))
    mx.eval(model.parameters())
    return model


IDS = mx.array([[1, 5, 7], [0, 95, 3]])


def test_every_quantized_layer_is_swapped_and_computes_the_same():
    model = quantized_model()
    before = model(IDS)
    report = mlx_nibble.accelerate(model)
    assert [s.path for s in report.swapped] == [
        path for path, m in model.named_modules() if hasattr(m, "bits")
    ]
    assert len(report.swapped) == 4 and not report.kept
    assert mx.allclose(model(IDS), before, rtol=1e-4, atol=1e-4)


def test_a_layer_changes_its_class_and_nothing_else():
    model = quantized_model()
    arrays = dict(tree_flatten(model.parameters()))
    layer = model.layers[0]
    report = mlx_nibble.accelerate(model, repack=False)
    assert model.layers[0] is layer
    assert type(layer) is mlx_nibble.nn.QuantizedLinear
    assert isinstance(layer, nn.QuantizedLinear)
    assert isinstance(model.embed, nn.QuantizedEmbedding)
    after = dict(tree_flatten(model.parameters()))
    assert after.keys() == arrays.keys()
    assert all(after[k] is arrays[k] for k in arrays)
    report.undo()
    assert type(layer) is nn.QuantizedLinear
    assert type(model.embed) is nn.QuantizedEmbedding


def test_saved_and_loaded_like_the_original(tmp_path):
    model = quantized_model()
    mlx_nibble.accelerate(model)
    want = model(IDS)
    model.save_weights(str(tmp_path / "w.safetensors"))
    plain = quantized_model()
    plain.load_weights(str(tmp_path / "w.safetensors"), strict=True)
    mlx_nibble.accelerate(plain)
    assert mx.array_equal(plain(IDS), want)


def test_twice_is_once():
    model = quantized_model()
    mlx_nibble.accelerate(model)
    second = mlx_nibble.accelerate(model)
    assert not second.swapped and not second.kept


@pytest.mark.cpu
def test_the_predicate_and_the_format_decide_and_the_report_says_so():
    model = quantized_model(class_predicate=lambda p, m: hasattr(m, "to_quantized"))
    model.layers[2] = nn.QuantizedLinear(128, 128, False, 32, 4)
    model.layers[2].bits = 7  # MLX has no such format, and a newer one might
    report = mlx_nibble.accelerate(model, lambda path, m: path != "layers.1")
    reasons = {k.path: k.reason for k in report.kept}
    assert reasons == {
        "layers.1": "the predicate said no",
        "layers.2": "no CPU kernel for mode affine, 7 bits, group 32",
    }
    assert type(model.layers[1]) is nn.QuantizedLinear
    text = str(report)
    assert "2 of 4 quantized layers" in text
    assert "the predicate said no" in text


@pytest.mark.cpu
def test_a_subclass_computes_by_its_own_code_with_our_products():
    class Negated(nn.QuantizedLinear):
        def __call__(self, x):
            return -super().__call__(x)

    model = quantized_model()
    model.layers[1] = layer = Negated(128, 128, False, 64, 4)
    x = mx.random.normal((3, 128))
    want = layer(x)
    report = mlx_nibble.accelerate(model)
    assert not report.kept
    assert isinstance(layer, Negated) and isinstance(
        layer, mlx_nibble.nn.QuantizedLinear
    )
    assert mx.allclose(layer(x), want, rtol=1e-4, atol=1e-4)
    assert not mx.array_equal(layer(x), want)
    report.undo()
    assert type(layer) is Negated


def test_a_layer_that_calls_none_of_our_operations_is_kept():
    class Own(nn.QuantizedLinear):
        def __call__(self, x):
            return x

    model = quantized_model()
    model.layers[1] = Own(128, 128, False, 64, 4)
    model.layers[2] = nn.QQLinear(128, 128, mode="mxfp8")
    model.layers[2].eval()
    report = mlx_nibble.accelerate(model)
    assert {(k.path, k.kind, k.reason) for k in report.kept} == {
        ("layers.1", "Own", "its code calls none of our operations"),
        ("layers.2", "QQLinear", "MLX's qqmm computes it, for it rounds its inputs"),
    }


def test_other_settings_the_second_time_replace_the_first():
    model = quantized_model()
    first = mlx_nibble.accelerate(model)
    second = mlx_nibble.accelerate(model, activations="int8")
    assert len(second.swapped) == 4
    layer = model.layers[0]
    x = mx.random.normal((3, 128))
    w = (layer.weight, layer.scales, layer.biases)
    int8 = mlx_nibble.ops.quantized_matmul(x, *w, activations="int8") + layer.bias
    assert mx.array_equal(layer(x), int8)
    assert isinstance(layer, mlx_nibble.nn.QuantizedLinear)
    second.undo()
    assert type(layer) is mlx_nibble.nn.QuantizedLinear
    first.undo()
    assert type(layer) is nn.QuantizedLinear


def test_undone_in_any_order_it_is_as_it_was():
    model = quantized_model()
    before = model(IDS)
    first = mlx_nibble.accelerate(model)
    second = mlx_nibble.accelerate(model, activations="int8")
    for report in (first, second, first):
        report.undo()
        assert type(model.layers[0]) is nn.QuantizedLinear
        assert mx.array_equal(model(IDS), before)


def test_the_second_time_tells_what_was_there_already():
    model = quantized_model()
    mlx_nibble.accelerate(model)
    second = mlx_nibble.accelerate(model)
    assert (second.unchanged, second.swapped, second.kept) == (4, [], [])
    assert str(second).splitlines() == [
        "mlx-nibble: 0 of 4 quantized layers",
        "     4 on our kernels already",
    ]


@pytest.mark.parametrize("model", [None, 3, [], nn.Linear])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(TypeError, match=r"\[accelerate\] an mlx.nn.Module is required"):
        mlx_nibble.accelerate(model)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("activations", [None, "int8"])
def test_a_pickle_is_the_same_model(activations, protocol):
    model = quantized_model()
    before = model(IDS)
    mlx_nibble.accelerate(model, activations=activations)
    stored = pickle.loads(pickle.dumps(model, protocol))
    mlx_nibble.accelerate(stored).undo()
    assert {type(m) for m in stored.modules()} <= {
        *(type(m) for m in quantized_model().modules()),
        mlx_nibble.nn.QuantizedLinear,
        mlx_nibble.nn.QuantizedEmbedding,
    }
    assert mx.allclose(stored(IDS), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_accelerated(copied):
    model = quantized_model()
    report = mlx_nibble.accelerate(model, activations="int8")
    after = model(IDS)
    other = copied(model)
    assert mx.array_equal(other(IDS), after)
    assert type(other.layers[0]) is type(model.layers[0])
    if copied is copy.deepcopy:  # the other shares nothing with it
        report.undo()
        assert mx.array_equal(other(IDS), after)


def test_a_layer_can_be_the_model():
    layer = nn.QuantizedLinear(128, 64)
    assert len(mlx_nibble.accelerate(layer).swapped) == 1


def test_an_inactive_package_touches_nothing(monkeypatch):
    monkeypatch.setattr(_native, "ext", None)
    monkeypatch.setattr(_native, "reason", "because")
    model = quantized_model()
    report = mlx_nibble.accelerate(model)
    assert not report.swapped and len(report.kept) == 4
    assert str(report).splitlines()[0] == "mlx-nibble is inactive: because"


@pytest.mark.cpu
def test_a_gpu_without_our_kernels_keeps_its_layers(monkeypatch):
    """A GPU that no executor knows: nothing is swapped, and the report says why."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    report = mlx_nibble.accelerate(quantized_model())
    assert not report.swapped
    assert {kept.reason for kept in report.kept} == {
        "no kernel of ours runs on this GPU"
    }


@pytest.mark.parametrize("bias", [True, False])
def test_layers_made_directly(bias):
    dense = nn.Linear(128, 64, bias=bias)
    ours = mlx_nibble.nn.QuantizedLinear.from_linear(dense, 64, 8)
    assert type(ours) is mlx_nibble.nn.QuantizedLinear
    theirs = nn.QuantizedLinear.from_linear(dense, 64, 8)
    x = mx.random.normal((3, 128))
    assert mx.allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)

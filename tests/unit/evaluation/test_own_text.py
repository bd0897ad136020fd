"""Text that a model writes itself, and the cache that keeps it."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_nibble import lm
from mlx_nibble.conversion.calibration import calibration_batches
from mlx_nibble.conversion.options import OWN_TEXT, Calibration
from mlx_nibble.evaluation import own_text as writing
from mlx_nibble.evaluation.own_text import own_text
from mlx_nibble.progress import silent
from tests.support import model_folders, tiny_models

SIZES = {"vocab_size": model_folders.VOCABULARY, "num_hidden_layers": 2}


class Peaked(nn.Module):
    """A model whose likeliest token is certain."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    @property
    def layers(self):
        return self.model.layers

    def __call__(self, tokens, cache=None):
        return 1e6 * self.model(tokens, cache=cache)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    config = tiny_models.config("llama", **SIZES)
    return model_folders.write(path, tiny_models.build("llama", **SIZES), config)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return lm.load_tokenizer(folder, {})


def test_each_token_is_of_the_model_after_those_before(tokenizer, monkeypatch):
    monkeypatch.setattr(writing, "_TOGETHER", 2)  # two rounds, the second smaller
    model = Peaked(tiny_models.build("llama", **SIZES))
    found = own_text(model, tokenizer, 3, 9, silent)
    assert found.shape == (3, 9)
    begun = len(tokenizer.encode("")) + 1
    likeliest = np.array(mx.argmax(model(mx.array(found)), -1))
    np.testing.assert_array_equal(found[:, begun:], likeliest[:, begun - 1 : -1])
    special = set(tokenizer.all_special_ids)
    assert not special & set(found[:, begun - 1].tolist())


def test_samples_follow_the_probabilities(tokenizer):
    """A model of two equally likely tokens writes each half of the time."""

    class Coin(Peaked):
        def __call__(self, tokens, cache=None):
            logits = self.model(tokens, cache=cache)
            return mx.where(mx.arange(logits.shape[-1]) < 2, 0.0, -mx.inf) + 0 * logits

    model = Coin(tiny_models.build("llama", **SIZES))
    found = own_text(model, tokenizer, 64, 33, silent)[:, -31:]
    assert set(np.unique(found)) == {0, 1}
    # 1984 tosses: six standard deviations are 0.067.
    assert abs(found.mean() - 0.5) < 0.067


def test_a_seed_repeats_the_text(tokenizer):
    model = tiny_models.build("llama", **SIZES)
    texts = [own_text(model, tokenizer, 2, 8, silent, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(texts[0], texts[1])
    assert (texts[0] != texts[2]).any()


def test_the_text_of_a_model_is_written_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path))
    text = Calibration(OWN_TEXT, samples=3, length=8)
    given = (text, folder, "digest", {}, silent, False)
    first = calibration_batches(*given)
    assert [b.shape for b in first] == [(1, 8)] * 3

    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(lm, "load_full_precision", refuse)
    again = calibration_batches(*given, batch_size=2)
    assert [b.shape for b in again] == [(2, 8), (1, 8)]
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    with pytest.raises(AssertionError):  # another model
        calibration_batches(text, folder, "other", {}, silent, False)
    assert [p.suffix for p in (tmp_path / "own-text").iterdir()] == [".safetensors"]

"""Settings: the keywords of the public functions, and the decisions they lead to."""

from __future__ import annotations

import inspect

import mlx.nn as nn
import pytest

import mlx_nibble
from mlx_nibble import Settings, lm
from mlx_nibble.acceleration.decide import Rules, decide
from mlx_nibble.acceleration.report import Kept, Swap
from mlx_nibble.acceleration.route import other_layers, quantized_layers
from mlx_nibble.nn import Options


@pytest.mark.parametrize("function", [mlx_nibble.accelerate, lm.load, lm.sharded_load])
def test_the_keywords_of_a_function_are_the_settings(function):
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and name not in ("progress", "seen")  # they are told, and decide nothing
    }
    assert keywords == vars(Settings())


def test_wrong_settings_are_refused_before_any_work():
    with pytest.raises(ValueError, match="activations must be None, 'int16' or 'int8'"):
        Settings("int4")
    with pytest.raises(ValueError, match="activations must be None, 'int16' or 'int8'"):
        lm.load("no/such/model", activations="int4")


def test_a_decision_changes_nothing():
    layer = nn.Linear(64, 64).to_quantized(64, 4)
    rules = Rules(quantized_layers(Options(), True), other_layers(False, True), "CPU")
    decision = decide("layer", layer, rules)
    assert isinstance(decision, Swap) and decision.original is nn.QuantizedLinear
    assert type(layer) is nn.QuantizedLinear
    layer.__class__ = decision.rebound
    assert decide("layer", layer, rules) is None
    other = nn.Linear(64, 64).to_quantized(64, 4)
    refusing = Rules(rules.quantized, rules.others, "CPU", lambda *_: False)
    assert isinstance(decide("layer", other, refusing), Kept)
    assert decide("identity", nn.Identity(), rules) is None

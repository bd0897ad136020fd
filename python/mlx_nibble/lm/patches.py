"""mlx-lm's functions that load and generate, replaced for a while."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx_lm import utils as mlx_lm_utils

from mlx_nibble import fast
from mlx_nibble.acceleration.rebind import Rebinding
from mlx_nibble.acceleration.settings import DEFAULTS, Settings
from mlx_nibble.lm.checked import checked_loading, load_model
from mlx_nibble.lm.dtypes import prepare
from mlx_nibble.lm.replaced import replaced

# The probabilities of a token over the whole vocabulary: on the CPU, MLX needs as much
# time for them as for three layers of a small model.
_probabilities = Rebinding({"mlx.core.logsumexp": fast.logsumexp})
# The module. The package's attribute `generate` is a function of the same name.
loops = importlib.import_module("mlx_lm.generate")

generate_step = _probabilities.function(loops.generate_step)
stream_generate = _probabilities.function(loops.stream_generate)


@contextmanager
def accelerated_loading(settings: Settings = DEFAULTS) -> Iterator[None]:
    """Prepare every model that mlx-lm loads inside this context.

    All of mlx-lm's entry points load through ``mlx_lm.utils.load_model``.
    """

    def prepared(*args: Any, **kwargs: Any) -> Any:
        model, config = load_model(*args, **kwargs)
        prepare(model, settings)
        return model, config

    with checked_loading(), replaced(mlx_lm_utils, "load_model", prepared):
        yield


@contextmanager
def accelerated_generation() -> Iterator[None]:
    """Let all of mlx-lm's :data:`loops` compute probabilities with our kernel."""
    with replaced(loops, "mx", _probabilities.module(mx)):
        yield

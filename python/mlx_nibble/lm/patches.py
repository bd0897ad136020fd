"""mlx-lm's functions that load and generate, replaced for a while."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn
import mlx_lm
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import sample_utils
from mlx_lm import utils as mlx_lm_utils

from mlx_nibble import fast
from mlx_nibble.acceleration.rebind import Rebinding
from mlx_nibble.acceleration.report import Report
from mlx_nibble.acceleration.settings import DEFAULTS, Settings
from mlx_nibble.lm.checked import checked_loading, load_model
from mlx_nibble.lm.dtypes import in_stored_types, prepare
from mlx_nibble.lm.replaced import replaced
from mlx_nibble.lm.upstream import fits

# The probabilities of a token over the whole vocabulary, and the likeliest: on the CPU,
# MLX needs as much time for them as for three layers of a small model.
_probabilities = Rebinding(
    {"mlx.core.logsumexp": fast.logsumexp, "mlx.core.argmax": fast.argmax}
)
# The module. The package's attribute `generate` is a function of the same name.
loops = importlib.import_module("mlx_lm.generate")


def _faster(name: str) -> Any:
    """Return a loop of mlx-lm that computes probabilities with our kernel."""
    if not fits(f"its own {name}", loops, {"mx": "", name: "model prompt"}):
        return getattr(loops, name, None) or getattr(mlx_lm, name, None)
    return _probabilities.function(getattr(loops, name))


generate_step = _faster("generate_step")
stream_generate = _faster("stream_generate")


@contextmanager
def accelerated_loading(
    settings: Settings = DEFAULTS, seen: Callable[[Report], None] = lambda report: None
) -> Iterator[None]:
    """Prepare every model that mlx-lm loads inside this context.

    All of mlx-lm's entry points load through ``mlx_lm.utils.load_model``, and save
    through ``save_model``, which here writes the types that were loaded.

    Args:
        settings: Settings of the models.
        seen: Function of each model's report.
    """
    if not fits(
        "acceleration while mlx-lm loads", mlx_lm_utils, {"load_model": "model_path"}
    ):
        yield
        return

    @wraps(load_model)  # so that this context fits within another
    def prepared(*args: Any, **kwargs: Any) -> Any:
        loaded = load_model(*args, **kwargs)
        seen(prepare(loaded[0], settings))
        return loaded

    with checked_loading(), replaced(mlx_lm_utils, "load_model", prepared):
        with _saving():
            yield


@contextmanager
def _saving() -> Iterator[None]:
    if not fits("the stored types", mlx_lm_utils, {"save_model": "save_path model"}):
        yield
        return
    save = mlx_lm_utils.save_model

    @wraps(save)
    def save_model(save_path: Any, model: mlx_nn.Module, **kwargs: Any) -> None:
        stored = in_stored_types(model)
        if not stored:
            return save(save_path, model, **kwargs)
        now = {k: v for k, v in tree_flatten(model.parameters()) if k in stored}
        model.update(tree_unflatten([*stored.items()]))
        del stored
        if kwargs.get("donate_model"):  # no reference may keep what mlx-lm frees
            del now
            return save(save_path, model, **kwargs)
        save(save_path, model, **kwargs)
        model.update(tree_unflatten([*now.items()]))

    with replaced(mlx_lm_utils, "save_model", save_model):
        yield


@contextmanager
def accelerated_generation() -> Iterator[None]:
    """Let all of mlx-lm's :data:`loops` use our kernels for probabilities."""
    if not fits("its own logsumexp in mlx-lm's loops", loops, {"mx": ""}):
        yield
        return
    name = "greedy_sampler"
    with ExitStack() as stack:
        stack.enter_context(replaced(loops, "mx", _probabilities.module(mx)))
        if fits("its own argmax in mlx-lm's loops", sample_utils, {name: "logprobs"}):
            greedy = _probabilities.function(getattr(sample_utils, name))
            for module in (sample_utils, loops):
                stack.enter_context(replaced(module, name, greedy))
        yield

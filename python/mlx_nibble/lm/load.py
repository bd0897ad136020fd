"""Load models with mlx-lm, on our kernels or as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx_lm
from mlx_lm import utils as mlx_lm_utils

from mlx_nibble.acceleration.report import Report
from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.lm.checked import checked_loading
from mlx_nibble.lm.dtypes import prepare, use_stock
from mlx_nibble.lm.patches import accelerated_loading


def consent(given: bool) -> dict[str, Any]:
    """Return arguments of :func:`mlx_lm.load`: may it run a folder's Python code?"""
    return {
        "tokenizer_config": {"trust_remote_code": given},
        "trust_remote_code": given,
    }


def load_as_it_is(path_or_hf_repo: str, *args: Any, **kwargs: Any) -> tuple:
    """Load a model with :func:`mlx_lm.load`, after a check of its files."""
    with checked_loading():
        return mlx_lm.load(path_or_hf_repo, *args, **kwargs)


def load(
    path_or_hf_repo: str,
    *args: Any,
    activations: str | None = None,
    batch_invariant: bool = False,
    repack: bool = True,
    tuned: bool = True,
    duel: bool = True,
    **kwargs: Any,
) -> tuple:
    """Load a model and accelerate it: :func:`mlx_lm.load` on our kernels.

    Args:
        path_or_hf_repo: A model folder, or a repository of the Hugging Face Hub.
        *args: Arguments of :func:`mlx_lm.load`.
        activations, batch_invariant, repack, tuned, duel: The fields of
            :class:`mlx_nibble.Settings`, which documents them.
        **kwargs: Arguments of :func:`mlx_lm.load`.

    Returns:
        The model, the tokenizer and, if ``return_config``, the configuration.

    Raises:
        FileNotFoundError: If the model's files are not found.
        ValueError: If a file of the model is damaged, if mlx-lm does not know its
            architecture, or if ``activations`` is neither None, ``"int16"`` nor
            ``"int8"``.
    """
    settings = Settings(activations, batch_invariant, repack, tuned, duel)
    with accelerated_loading(settings):
        return mlx_lm.load(path_or_hf_repo, *args, **kwargs)


def sharded_load(
    repo: str,
    *args: Any,
    activations: str | None = None,
    batch_invariant: bool = False,
    repack: bool = True,
    tuned: bool = True,
    duel: bool = True,
    seen: Callable[[Report], None] = lambda report: None,
    **kwargs: Any,
) -> tuple:
    """Load each process's part of a model: :func:`mlx_lm.utils.sharded_load`.

    A tokenizer's Python code is run only with ``trust_remote_code`` (mlx-lm runs it
    without being told to).

    Args:
        repo: A model folder, or a repository of the Hugging Face Hub.
        *args: Arguments of :func:`mlx_lm.utils.sharded_load`.
        activations, batch_invariant, repack, tuned, duel: The fields of
            :class:`mlx_nibble.Settings`, which documents them.
        seen: Function of the model's report.
        **kwargs: Arguments of :func:`mlx_lm.utils.sharded_load`.

    Returns:
        The results of :func:`mlx_lm.utils.sharded_load`.
    """
    settings = Settings(activations, batch_invariant, repack, tuned, duel)
    trust = bool(kwargs.get("trust_remote_code"))
    given = kwargs.get("tokenizer_config") or {}
    kwargs["tokenizer_config"] = {"trust_remote_code": trust, **given}
    # Accelerate afterwards: sharding replaces layers.
    with checked_loading():
        model, *others = mlx_lm_utils.sharded_load(repo, *args, **kwargs)
    seen(prepare(model, settings))
    return (model, *others)


def load_stock(path_or_hf_repo: str, *args: Any, **kwargs: Any) -> tuple:
    """Load a model with :func:`mlx_lm.load`, in the types that suit MLX best.

    See :func:`mlx_nibble.lm.use_stock`.
    """
    model, *others = load_as_it_is(path_or_hf_repo, *args, **kwargs)
    use_stock(model)
    return (model, *others)

"""mlx-lm with our kernels. The only module that imports ``mlx_lm``.

from mlx_nibble.lm import load
from mlx_lm import generate

model, tokenizer = load("mlx-community/SmolLM2-135M-Instruct-4bit")
generate(model, tokenizer, prompt="Hello")
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn
import mlx_lm
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.models.cache import make_prompt_cache

from mlx_nibble import fast, nn
from mlx_nibble.acceleration.accelerate import (
    accelerate,
    keeps_scales,
    recognise_symmetric,
    repacked,
)
from mlx_nibble.acceleration.rebind import Rebinding
from mlx_nibble.acceleration.report import Report

__all__ = [
    "accelerated_generation",
    "accelerated_loading",
    "generate_step",
    "load",
    "load_as_it_is",
    "load_for_evaluation",
    "load_full_precision",
    "load_stock",
    "loops",
    "make_prompt_cache",
    "prepare",
    "run_command",
    "save_companions",
    "set_activation_dtype",
    "sharded_load",
    "stream_generate",
    "use_stock",
]

# Probabilities of a token, over the whole vocabulary: on the CPU, MLX takes as long
# for them as for three layers of a small model.
_probabilities = Rebinding({"mlx.core.logsumexp": fast.logsumexp})
# mlx-lm's own. Not an attribute of its package: a function there has the same name.
loops = importlib.import_module("mlx_lm.generate")
load_as_it_is = mlx_lm.load

generate_step = _probabilities.function(loops.generate_step)
stream_generate = _probabilities.function(loops.stream_generate)


def load(
    path_or_hf_repo: str,
    *args: Any,
    activations: str | None = None,
    batch_invariant: bool = False,
    repack: bool = False,
    tuned: bool = True,
    **kwargs: Any,
) -> tuple:
    """:func:`mlx_lm.load`, with the model's quantized layers on our kernels.

    Args:
        path_or_hf_repo: A model folder, or a repository of the Hugging Face Hub.
        *args: As :func:`mlx_lm.load` takes them.
        activations: As :func:`mlx_nibble.accelerate` takes it.
        batch_invariant: As :func:`mlx_nibble.accelerate` takes it.
        repack: As :func:`mlx_nibble.accelerate` takes it.
        tuned: As :func:`mlx_nibble.accelerate` takes it.
        **kwargs: As :func:`mlx_lm.load` takes them.

    Returns:
        What :func:`mlx_lm.load` returns: the model, the tokenizer and, if
        ``return_config``, the configuration.

    Raises:
        FileNotFoundError: If the model's files are not found.
        ValueError: If mlx-lm does not know the model's architecture, or
            ``activations`` is neither None nor ``"int8"``.
    """
    with accelerated_loading(activations, batch_invariant, repack, tuned):
        return mlx_lm.load(path_or_hf_repo, *args, **kwargs)


def sharded_load(
    repo: str,
    *args: Any,
    activations: str | None = None,
    batch_invariant: bool = False,
    repack: bool = False,
    tuned: bool = True,
    **kwargs: Any,
) -> tuple:
    """:func:`mlx_lm.utils.sharded_load`, each process's part on our kernels.

    Args:
        repo: A model folder, or a repository of the Hugging Face Hub.
        *args: As :func:`mlx_lm.utils.sharded_load` takes them.
        activations: As :func:`mlx_nibble.accelerate` takes it.
        batch_invariant: As :func:`mlx_nibble.accelerate` takes it.
        repack: As :func:`mlx_nibble.accelerate` takes it.
        tuned: As :func:`mlx_nibble.accelerate` takes it.
        **kwargs: As :func:`mlx_lm.utils.sharded_load` takes them.

    Returns:
        What :func:`mlx_lm.utils.sharded_load` returns.
    """
    # Afterwards, for sharding replaces layers.
    model, *others = mlx_lm_utils.sharded_load(repo, *args, **kwargs)
    prepare(model, activations, batch_invariant, repack, tuned)
    return (model, *others)


def load_stock(path_or_hf_repo: str, *args: Any, **kwargs: Any) -> tuple:
    """:func:`mlx_lm.load`, in the configuration that MLX alone is fastest in.

    On the CPU that is float32: there MLX multiplies 4-bit weights 10 times slower
    in bfloat16, and 40 times slower in float16, which most checkpoints are in.
    """
    model, *others = mlx_lm.load(path_or_hf_repo, *args, **kwargs)
    use_stock(model)
    return (model, *others)


def use_stock(model: mlx_nn.Module) -> None:
    """Put a model in the configuration of :func:`load_stock`."""
    if _on_cpu():
        model.set_dtype(mx.float32)


@contextmanager
def accelerated_loading(
    activations: str | None = None,
    batch_invariant: bool = False,
    repack: bool = False,
    tuned: bool = True,
) -> Iterator[None]:
    """Inside it, every model that mlx-lm loads is :func:`prepare`\\ d.

    All of mlx-lm's entry points load through ``mlx_lm.utils.load_model``.
    """
    original = mlx_lm_utils.load_model

    def load_model(*args: Any, **kwargs: Any) -> Any:
        model, config = original(*args, **kwargs)
        prepare(model, activations, batch_invariant, repack, tuned)
        return model, config

    with _replaced(mlx_lm_utils, "load_model", load_model):
        yield


@contextmanager
def accelerated_generation() -> Iterator[None]:
    """Inside it, all of mlx-lm's :data:`loops` compute probabilities as ours does."""
    with _replaced(loops, "mx", _probabilities.module(mx)):
        yield


@contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Inside it, a module's name means something else, if it has that name."""
    if not hasattr(module, name):
        yield
        return
    original = vars(module)[name]
    vars(module)[name] = value
    try:
        yield
    finally:
        vars(module)[name] = original


def run_command(
    name: str,
    prog: str,
    arguments: Sequence[str],
    activations: str | None = None,
    batch_invariant: bool = False,
    repack: bool = False,
) -> None:
    """Run one of mlx-lm's commands, with every model that it loads accelerated.

    Args:
        name: Module of mlx-lm with a ``main``, such as ``generate``.
        prog: What the command calls itself in its help.
        arguments: Its command line, without the program's name.
        activations: As :func:`mlx_nibble.accelerate` takes it.
        batch_invariant: As :func:`mlx_nibble.accelerate` takes it.
        repack: As :func:`mlx_nibble.accelerate` takes it.
    """
    command = importlib.import_module(f"mlx_lm.{name}")
    sys.argv = [prog, *arguments]
    own_sharded_load = partial(
        sharded_load,
        activations=activations,
        batch_invariant=batch_invariant,
        repack=repack,
    )
    with (
        accelerated_loading(activations, batch_invariant, repack),
        _replaced(command, "sharded_load", own_sharded_load),
        accelerated_generation(),
    ):
        command.main()


def prepare(
    model: mlx_nn.Module,
    activations: str | None = None,
    batch_invariant: bool = False,
    repack: bool = False,
    tuned: bool = True,
) -> Report:
    """Accelerate a model, and on the CPU have it compute in float32.

    MLX's CPU operations emulate the half types: the same model decodes at 30
    tokens/s in float32 and at 25 in bfloat16 when linear layers cost nothing.

    Returns:
        What :func:`mlx_nibble.accelerate` returns. Its ``undo()`` leaves the types.
    """
    report = accelerate(
        model,
        activations=activations,
        batch_invariant=batch_invariant,
        tuned=tuned,
    )
    if _on_cpu():
        set_activation_dtype(model, mx.float32)
        if repack:  # not before: scales may be others now
            report.repacked = repacked(model)
    return report


def set_activation_dtype(model: mlx_nn.Module, dtype: mx.Dtype) -> None:
    """Have a model's activations, and so its KV cache, be of type ``dtype``.

    Every floating-point parameter is cast, except for the scales and biases of
    quantized layers on our products: they are read in the type they have, and twice
    the bytes would gain nothing.
    """
    for _, module in model.named_modules():
        keep: tuple[str, ...] = ()
        if isinstance(module, nn.QuantizedEmbedding):
            module._row_dtype = dtype
            keep = ("scales", "biases")
        elif keeps_scales(module):
            keep = ("scales", "biases")
        for name, value in module.items():
            if name in keep or not isinstance(value, mx.array):
                continue
            if mx.issubdtype(value.dtype, mx.floating):
                module[name] = value.astype(dtype)
    # Of the new arrays nothing is known yet.
    recognise_symmetric(module for _, module in model.named_modules())


def _on_cpu() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu


def load_full_precision(
    path_or_hf_repo: str, trust_remote_code: bool = False
) -> tuple[mlx_nn.Module, Any, dict[str, Any]]:
    """Load a model to be quantized: lazily, and dequantized if it was quantized.

    Returns:
        The model, its tokenizer, and its configuration without a quantization.
    """
    model, tokenizer, *others = mlx_lm.load(
        path_or_hf_repo,
        lazy=True,
        return_config=True,
        trust_remote_code=trust_remote_code,
    )
    (config,) = others
    if config.pop("quantization", None) is not None:
        model = mlx_lm_utils.dequantize_model(model)
    config.pop("quantization_config", None)
    return model, tokenizer, config


def save_companions(
    folder: Path, source: str, tokenizer: Any, config: dict[str, Any]
) -> None:
    """Write what a model folder holds beside its weights, as mlx-lm does.

    Args:
        folder: The model folder under way.
        source: Where the model came from: a folder, or a repository of the Hub.
        tokenizer: As :func:`mlx_lm.load` returned it.
        config: The configuration, with its quantization.
    """
    path = Path(source)
    if not path.exists():
        path = Path(mlx_lm_utils.hf_repo_to_path(source))
    mlx_lm_utils.save_config(config, config_path=folder / "config.json")
    tokenizer.save_pretrained(folder)
    for file in [*path.glob("*.py"), path / "generation_config.json"]:
        if file.exists():
            shutil.copy(file, folder)


def load_for_evaluation(
    path_or_hf_repo: str, activations: str | None = None
) -> tuple[mlx_nn.Module, Any]:
    """Load a model to predict long texts with, and its tokenizer.

    On the CPU it is dequantized to float32: the same weights, and products that
    :func:`mlx_nibble.layerwise.cpu_math.fast_dense` computes. Not so with
    ``activations`` of 8 bits: what these lose, only our own products show.
    """
    if activations is not None or not _on_cpu():
        return load(path_or_hf_repo, activations=activations)[:2]
    model, tokenizer = mlx_lm.load(path_or_hf_repo, lazy=True)[:2]
    model.set_dtype(mx.float32)  # scales, too: weights are then not rounded
    return mlx_lm_utils.dequantize_model(model), tokenizer

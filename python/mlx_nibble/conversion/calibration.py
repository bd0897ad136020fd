"""The tokens that a model is calibrated on, or trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble import lm
from mlx_nibble._version import __version__
from mlx_nibble.conversion.options import OWN_TEXT, Calibration
from mlx_nibble.evaluation.calibration_text import batches, encode, read_text
from mlx_nibble.evaluation.own_text import own_text
from mlx_nibble.io.cache import cache_lock, short_digest
from mlx_nibble.io.checkpoint import read_tensors, save_tensors
from mlx_nibble.progress import Progress

_FOLDER = "own-text"
# The model that writes on a CPU: at 8 bits the perplexity changes by 0.01 %
# (docs/results/quantization.md), and a dense product takes 30 times as long.
_GROUP_SIZE, _BITS = 64, 8


def calibration_batches(
    calibration: Calibration,
    folder: Path,
    digest: str,
    config: dict[str, Any],
    progress: Progress,
    trust: bool,
    batch_size: int = 1,
) -> list[mx.array]:
    """Return the sequences of a calibration, in batches `[batch_size, length]`.

    Args:
        calibration: The text, and how much of it.
        folder: The model in full precision: its tokenizer, and perhaps its words.
        digest: Digest of the model's files.
        config: The model's configuration.
        progress: Function called while the model writes.
        trust: Whether the model's Python code may run.
        batch_size: Sequences of a batch.

    Raises:
        ValueError: If the text is too short.
        OSError: If the text cannot be read.
    """
    tokenizer = lm.load_tokenizer(folder, config, trust)
    length = calibration.length
    if calibration.text != OWN_TEXT:
        ids: Sequence[int] = encode(tokenizer, read_text(calibration.text))
    else:
        ids = _own(calibration, folder, digest, tokenizer, progress, trust)
    return batches(ids, length, calibration.samples, batch_size)


def text_digest(tokens: Sequence[mx.array]) -> str:
    """Return the digest of batches of tokens."""
    digest = hashlib.sha256()
    for batch in tokens:
        digest.update(json.dumps(batch.tolist()).encode())
    return digest.hexdigest()


def _own(
    calibration: Calibration,
    folder: Path,
    digest: str,
    tokenizer: Any,
    progress: Progress,
    trust: bool,
) -> list[int]:
    """Return text of the model, which is written once and kept in the cache."""
    samples, length = calibration.samples, calibration.length
    known = repr((digest, samples, length, str(mx.default_device()), __version__))
    name = short_digest(known)
    with cache_lock(_FOLDER) as cache:
        file = cache / _FOLDER / f"{name}.safetensors"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            model, _ = lm.load_full_precision(folder, trust_remote_code=trust)
            _prepare(model)
            found = own_text(model, tokenizer, samples, length, progress)
            partial = file.with_name("partial-" + file.name)
            save_tensors(partial, {"tokens": mx.array(found)})
            partial.replace(file)
        return np.array(read_tensors([file], "convert")["tokens"]).ravel().tolist()


def _prepare(model: nn.Module) -> None:
    if lm.on_cpu():
        nn.quantize(
            model,
            _GROUP_SIZE,
            _BITS,
            class_predicate=lambda _, m: (
                hasattr(m, "to_quantized") and m["weight"].shape[-1] % _GROUP_SIZE == 0
            ),
        )
        lm.prepare(model)

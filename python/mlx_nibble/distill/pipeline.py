"""Quantization of a model, and distillation of the result."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from mlx_nibble.conversion.convert import convert, source_folder
from mlx_nibble.conversion.options import Calibration, Options
from mlx_nibble.conversion.source import Source, weights_of
from mlx_nibble.distill.distill import Run
from mlx_nibble.distill.options import Training
from mlx_nibble.distill.report import Distilled
from mlx_nibble.io.cache import short_digest
from mlx_nibble.io.folder import Reserved, reserved
from mlx_nibble.progress import Progress, Tell, silent, untold


def quantize_and_distill(
    source: str,
    out: str | Path,
    options: Options,
    training: Training,
    text: Calibration,
    progress: Progress = silent,
    tell: Tell = untold,
    trust_remote_code: bool = False,
) -> Distilled:
    """Quantize a model, then train the result.

    The quantized model lies beside `out` until the end, so a killed run continues in
    either half.

    Args:
        source: A model folder, a GGUF file, or a repository of the Hugging Face Hub.
        out: The folder to make; it must not exist.
        options: How to quantize, and on which text.
        training: How to train.
        text: The text to train on.
        progress: Function of the current work, steps done and all steps.
        tell: Function that is told what else the user should know, in one line.
        trust_remote_code: Whether the Python code of the source may run.

    Raises:
        ValueError: If an option or the source is wrong, `out` exists, or another
            process makes it.
        OSError: If files cannot be read or written.
    """
    with (
        reserved(out, "convert") as place,
        source_folder(source, place, tell, trust_remote_code) as original,
    ):
        files = weights_of(original, progress)
        start = _start(place, files, options)
        if not start.is_dir():
            convert(
                *(str(original), start, options),
                *(progress, tell, trust_remote_code, files),
            )
        made = Run(
            start,
            original,
            training,
            text,
            progress,
            tell,
            trust_remote_code,
            files,
        ).into(place)
        shutil.rmtree(start)
        return made


def _start(place: Reserved, original: Source, options: Options) -> Path:
    """Return the folder of the quantized model, which its contents name."""
    parts = (original.digest, asdict(options))
    return place.path.with_name(f".{place.path.name}.start-{short_digest(repr(parts))}")

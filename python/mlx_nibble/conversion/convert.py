"""Conversion of a model folder to a quantized MLX model folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble import lm
from mlx_nibble.conversion.options import Calibration, Options
from mlx_nibble.conversion.plan import make_plan
from mlx_nibble.conversion.quantizer import quantize_model
from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.evaluation.calibration_text import batches, encode, read_text
from mlx_nibble.formats import Format
from mlx_nibble.io.checkpoint import save_weights
from mlx_nibble.io.config import with_quantization
from mlx_nibble.io.folder import new_folder
from mlx_nibble.layerwise.matrices import parameters
from mlx_nibble.layerwise.trace import trace
from mlx_nibble.progress import Progress, silent
from mlx_nibble.quantize.recipes import Plan


@dataclass(frozen=True)
class Converted:
    """Facts of the folder that `convert` wrote.

    Attributes:
        path: The folder.
        parameters: Number of weights of the full-precision model.
        nbytes: Bytes of all tensors.
        plan: The format of each quantized matrix.
        losses: With a target: the measured loss of each matrix in 4 bits, in nats a
            token.
    """

    path: Path
    parameters: int
    nbytes: int
    plan: Plan
    losses: Mapping[str, float]

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, with scales, biases and all plain tensors counted."""
        return 8 * self.nbytes / self.parameters


def convert(
    source: str,
    out: str | Path,
    options: Options,
    progress: Progress = silent,
    origin: str | None = None,
) -> Converted:
    """Quantize a model that mlx-lm loads.

    A killed conversion continues when it is called again with the same arguments:
    measurements and finished layers are kept beside `out`.

    Args:
        source: A model folder, or a repository of the Hugging Face Hub.
        out: The folder to make; it must not exist.
        options: How to quantize.
        progress: Function of the current work, steps done and all steps.
        origin: Name that distinguishes this run from a run on another model. Default:
            `source`. For a temporary folder it is the file that the folder was made
            from.

    Raises:
        ValueError: If an option is wrong, or `out` exists.
        OSError: If files cannot be read or written.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"[convert] the output must not exist yet but {out} does.")
    model, tokenizer, config = lm.load_full_precision(source)
    if options.dtype is not None:
        model.set_dtype(getattr(mx, options.dtype))
    count = sum(v.size for v in parameters(model).values())
    tokens: list[mx.array] = []
    if options.method.calibrated or options.target_bpw is not None:
        tokens = _calibration_batches(tokenizer, options.calibration)
        trace(model, tokens[0])  # refuse a model that cannot be calibrated
    settings = _fingerprint(origin or source, options, tokens)
    open_workspace = partial(Workspace, out, settings)
    plan, losses = make_plan(model, options, tokens, open_workspace, progress)
    workspace = open_workspace()
    workspace.keep_plan({path: asdict(form) for path, form in plan.items()})
    arrays = quantize_model(model, plan, options.method, tokens, workspace, progress)
    nbytes = sum(a.nbytes for a in arrays.values())
    with new_folder(out, "convert") as folder:
        save_weights(folder, arrays)
        usual = Format(options.bits, options.group_size)
        config = with_quantization(config, usual, plan)
        lm.save_companions(folder, source, tokenizer, config)
    workspace.remove()
    return Converted(out, count, nbytes, plan, losses)


def _calibration_batches(tokenizer: Any, calibration: Calibration) -> list[mx.array]:
    ids = encode(tokenizer, read_text(calibration.text))
    return batches(ids, calibration.length, calibration.samples)


def _fingerprint(
    origin: str, options: Options, tokens: Sequence[mx.array]
) -> dict[str, Any]:
    """Return all that measurements and finished layers depend on."""
    digest = hashlib.sha256()
    for batch in tokens:
        digest.update(json.dumps(batch.tolist()).encode())
    return {
        "origin": str(Path(origin).absolute()) if Path(origin).exists() else origin,
        "options": {k: v for k, v in asdict(options).items() if k != "calibration"},
        "tokens": digest.hexdigest(),
    }

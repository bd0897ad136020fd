"""A model folder in, a quantized MLX model folder out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn

from mlx_nibble import lm
from mlx_nibble.conversion.quantizer import Plan, quantize_model
from mlx_nibble.conversion.sensitivity import sensitivity
from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.evaluation.text import encode, read_text
from mlx_nibble.formats import GROUP_SIZES, SUPPORTED_BITS, Format
from mlx_nibble.io.checkpoint import save_weights
from mlx_nibble.io.folder import new_folder
from mlx_nibble.layerwise.layers import Matrix, matrices, parameters
from mlx_nibble.layerwise.stream import batches
from mlx_nibble.progress import Progress, silent
from mlx_nibble.quantize.budget import solve
from mlx_nibble.quantize.method import Method
from mlx_nibble.quantize.recipes import RECIPES

# Divergences of blocks differ by orders of magnitude: few tokens order them.
_SENSITIVITY_TOKENS = 256
# What is measured a width at a time. With more bits a divergence grows with the
# square of the error, and can be carried over.
_MEASURED_BITS = 4


@dataclass(frozen=True)
class Calibration:
    """What a model is calibrated on.

    Attributes:
        text: As :func:`mlx_nibble.evaluation.text.read_text` takes it.
        samples: Sequences, spread evenly over the text.
        length: Tokens a sequence.
    """

    text: str = "builtin"
    samples: int = 64
    length: int = 256

    def __post_init__(self) -> None:
        """Check the values."""
        if min(self.samples, self.length) < 1:
            raise ValueError(
                "[convert] samples and their length must be at least 1 but are "
                f"{self.samples} and {self.length}."
            )


@dataclass(frozen=True)
class Options:
    """How to quantize.

    Attributes:
        bits: Of the recipe's base format.
        group_size: Likewise.
        recipe: One of :data:`mlx_nibble.quantize.recipes.RECIPES`.
        target_bpw: Instead of a recipe: bits per weight at most, everything counted
            (embedding, head, scales and biases, norms), spent where sensitivity
            says. `bits` is then not used.
        method: The steps for each matrix.
        calibration: Needed by calibrated methods and by `target_bpw`.
        symmetric: Store scale-only weights (bias -2**(bits-1) * scale).
        dtype: Of scales and of what is not quantized; default: the model's.
    """

    bits: int = 4
    group_size: int = 64
    recipe: str = "uniform"
    target_bpw: float | None = None
    method: Method = field(default_factory=Method)
    calibration: Calibration = field(default_factory=Calibration)
    symmetric: bool = False
    dtype: str | None = None

    @property
    def mode(self) -> str:
        """One of :data:`mlx_nibble.formats.MODES`."""
        return "symmetric" if self.symmetric else "affine"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.recipe not in RECIPES:
            raise ValueError(
                f"[convert] recipe must be one of {tuple(RECIPES)} but got "
                f"{self.recipe!r}."
            )
        if self.target_bpw is not None and not 0 < self.target_bpw < math.inf:
            raise ValueError(
                "[convert] the target must be a positive number of bits a weight but "
                f"is {self.target_bpw}."
            )
        Format(self.bits, self.group_size)


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: The folder.
        parameters: Weights, as the full-precision model counts them.
        nbytes: Bytes of all tensors.
        plan: The format of each quantized matrix.
        losses: With a target: what each was measured to lose in 4 bits, in nats a
            token.
    """

    path: Path
    parameters: int
    nbytes: int
    plan: Plan
    losses: Mapping[str, float]

    @property
    def bits_per_weight(self) -> float:
        """With scales, biases and what is not quantized counted."""
        return 8 * self.nbytes / self.parameters


def convert(
    source: str,
    out: str | Path,
    options: Options,
    progress: Progress = silent,
    origin: str | None = None,
) -> Converted:
    """Quantize a model that mlx-lm loads.

    Killed at any moment, it goes on where it was when called again with the same
    arguments: measurements and finished layers are kept beside `out`.

    Args:
        source: A model folder, or a repository of the Hugging Face Hub.
        out: The folder to make; it must not exist.
        options: How to quantize.
        progress: Called with what is being done, steps done and all steps.
        origin: What tells a run that goes on from one on another model. Default:
            `source`; the file, if `source` is a temporary folder made from it.

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
    settings = _fingerprint(origin or source, options, tokens)
    open_workspace = partial(Workspace, out, settings)
    plan, losses = make_plan(model, options, tokens, open_workspace, progress)
    workspace = open_workspace()
    workspace.keep_plan({path: asdict(form) for path, form in plan.items()})
    arrays = quantize_model(model, plan, options.method, tokens, workspace, progress)
    nbytes = sum(a.nbytes for a in arrays.values())
    with new_folder(out, "convert") as folder:
        save_weights(folder, arrays)
        config = {**config, "quantization": quantization_entry(plan, options)}
        config["quantization_config"] = config["quantization"]
        lm.save_companions(folder, source, tokenizer, config)
    workspace.remove()
    return Converted(out, count, nbytes, plan, losses)


def make_plan(
    model: mlx_nn.Module,
    options: Options,
    tokens: Sequence[mx.array],
    open_workspace: Callable[[], Workspace],
    progress: Progress = silent,
) -> tuple[dict[str, Format], dict[str, float]]:
    """The format of each matrix: by recipe, or by measured sensitivity.

    The workspace is opened once all else is checked: a mistake leaves no trace in it.

    Returns:
        The plan; and, if measured, the loss of each matrix in 4 bits.

    Raises:
        ValueError: If no matrix can be quantized, or the target cannot be reached.
    """
    found = matrices(model)
    if not found:
        raise ValueError("[convert] the model has no matrix that can be quantized.")
    dtype = options.dtype or _dtype_name(found[0].module["weight"].dtype)
    base = Format(options.bits, options.group_size, dtype, options.mode)
    if options.target_bpw is None:
        shapes = {m.path: m.shape for m in found}
        return RECIPES[options.recipe](shapes, base), {}
    # Two bits below the mean cost more than they buy elsewhere: on SmolLM2 a plan of
    # 5 bits that was let use 2 and 3 lost more than 4 bits throughout.
    fewest = min(max(2, int(options.target_bpw) - 1), 8)
    widths = [bits for bits in SUPPORTED_BITS if bits >= fewest]
    forms = [replace(base, bits=b, group_size=g) for b in widths for g in GROUP_SIZES]
    smallest = replace(base, bits=widths[0], group_size=GROUP_SIZES[-1])
    budget = _budget(model, found, options.target_bpw, smallest)
    measured = [replace(base, bits=b) for b in widths if b <= _MEASURED_BITS]
    measured = measured or [replace(base, bits=widths[0])]
    some = tokens[: max(1, _SENSITIVITY_TOKENS // tokens[0].size)]
    choices = sensitivity(model, some, measured, forms, open_workspace(), progress)
    losses = {
        m.path: choice.loss
        for m in found
        for choice in choices.get(m.path, [])
        if choice.form == measured[-1].fitted(m.inputs)
    }
    return solve(choices, budget), losses


def _budget(
    model: mlx_nn.Module, found: Sequence[Matrix], target: float, smallest: Format
) -> int:
    """Bytes for the matrices: what the target leaves beside all else.

    Raises:
        ValueError: If not even the smallest format fits in.
    """
    least = 0
    quantized = set()
    for m in found:
        if form := smallest.fitted(m.inputs):
            least += form.nbytes(m.size // m.inputs, m.inputs)
            quantized.add(f"{m.path}.weight")
    everything = parameters(model)
    weights = sum(value.size for value in everything.values())
    plain = sum(v.nbytes for path, v in everything.items() if path not in quantized)
    budget = int(target * weights / 8) - plain
    if budget < least:
        bits = 8 * (least + plain) / weights
        raise ValueError(
            f"[convert] the target must be at least {bits:.3f} bits a weight, which "
            f"matrices of {smallest.bits} bits take with all else, but is {target}."
        )
    return budget


def quantization_entry(plan: Plan, options: Options) -> dict[str, Any]:
    """The `quantization` of config.json, with an entry for each that differs."""
    entry = Format(options.bits, options.group_size, mode=options.mode).config
    usual = (options.bits, options.group_size)
    for path, form in plan.items():
        if (form.bits, form.group_size) != usual:
            entry[path] = form.config
    return entry


def _calibration_batches(tokenizer: Any, calibration: Calibration) -> list[mx.array]:
    ids = encode(tokenizer, read_text(calibration.text))
    return batches(ids, calibration.length, calibration.samples)


def _fingerprint(
    origin: str, options: Options, tokens: Sequence[mx.array]
) -> dict[str, Any]:
    """What must be equal for measurements and finished layers to be of use."""
    digest = hashlib.sha256()
    for batch in tokens:
        digest.update(json.dumps(batch.tolist()).encode())
    return {
        "origin": str(Path(origin).absolute()) if Path(origin).exists() else origin,
        "options": {k: v for k, v in asdict(options).items() if k != "calibration"},
        "tokens": digest.hexdigest(),
    }


def _dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]

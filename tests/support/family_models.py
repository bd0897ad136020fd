"""Conversion of one tiny model of any family, and what must hold of the result."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from mlx_lm.utils import load_model, quantize_model

import mlx_nibble
from mlx_nibble.acceleration.accelerate import is_quantized
from mlx_nibble.conversion.convert import convert
from mlx_nibble.conversion.options import Calibration, Options
from mlx_nibble.quantize.method import Method
from tests.support import family_configs, model_folders
from tests.support.arrays import to_numpy

GROUP_SIZE = 32
# All parts that depend on a family are in these. Rules and sweeps see one matrix at a
# time, so the cheapest are enough.
METHODS = {
    "rtn": Method("affine", gptq=False, sweeps=0),
    "gptq": Method("affine", sweeps=1),
    "awq": Method("affine", awq=True, gptq=False, sweeps=0),
    "awq+gptq": Method("affine", awq=True, sweeps=1),
    "target": Method("affine", gptq=False, sweeps=0),
}
# Above 8 bits in groups of 32 and all that is not quantized.
_TARGET = 16.0
_TEXT = "A hen, a pen and a den. The rest is another sentence. " * 40


@dataclass(frozen=True)
class Outcome:
    """The result of one conversion.

    Attributes:
        refused: The line of the refusal; empty if it works.
        error: Distance of the logits from the full-precision model's, relative.
        rounded: The same for mlx-lm's own conversion to 8 bits.
        coarse: The same for 4 bits.
        missing: Matrices that mlx-lm quantizes and we do not.
        accelerated: Distance of the accelerated model's logits from stock, relative.
        layers: Quantized layers, and how many of them `accelerate` swapped.
    """

    refused: str = ""
    error: float = 0.0
    rounded: float = 0.0
    coarse: float = 0.0
    missing: tuple[str, ...] = ()
    accelerated: float = 0.0
    layers: tuple[int, int] = (0, 0)

    @property
    def right(self) -> bool:
        """True if the conversion is refused, or what it wrote is right.

        The error must be below that of rounding to 6 bits. Its steps are a quarter of
        those of 4 bits, and 4 times those of 8 bits.
        """
        near = self.error <= max(self.coarse / 4, 4 * self.rounded)
        return bool(self.refused) or (near and not self.missing)


def build(family: str, seed: int = 0) -> nn.Module:
    """Return a model with random weights."""
    mx.random.seed(seed)
    module = importlib.import_module(f"mlx_lm.models.{family}")
    model = module.Model(module.ModelArgs.from_dict(family_configs.config(family)))

    def spread(a: mx.array) -> mx.array:
        if not mx.issubdtype(a.dtype, mx.floating):
            return a
        # Some parameters start at zero, where nothing would be seen.
        return (2 * a if a.ndim > 1 else a) + 0.05 * mx.random.normal(a.shape)

    model.update(tree_map(spread, model.parameters()))
    mx.eval(model.parameters())
    return model


def tokens(count: int = 1, length: int = 40, seed: int = 1) -> list[mx.array]:
    """Return batches of token ids."""
    mx.random.seed(seed)
    low, high = 0, family_configs.VOCABULARY
    return [mx.random.randint(low, high, (1, length)) for _ in range(count)]


def convert_tiny(family: str, method: str) -> Outcome:
    """Convert a tiny model to 8 bits, load it in mlx-lm, and compare."""
    target = _TARGET if method == "target" else None
    with TemporaryDirectory() as name:
        top = Path(name)
        config = family_configs.config(family)
        model_folders.write(top / "model", build(family), config)
        (top / "text.txt").write_text(_TEXT)
        # Several batches take turns in one pass; for AWQ's many runs one is enough.
        samples = 1 if METHODS[method].awq else 2
        text = Calibration(str(top / "text.txt"), samples, length=24)
        options = Options(8, GROUP_SIZE, "uniform", target, METHODS[method], text)
        try:
            convert(str(top / "model"), top / "out", options)
        except ValueError as error:
            assert {p.name for p in top.iterdir()} == {"model", "text.txt"}, error
            return Outcome(refused=str(error))
        # A model's sanitize() may change weights, so the reference is loaded, too.
        full, rounded, coarse = (load_model(top / "model")[0] for _ in range(3))
        return _compare(load_model(top / "out")[0], full, rounded, coarse)


def _compare(
    model: nn.Module, full: nn.Module, rounded: nn.Module, coarse: nn.Module
) -> Outcome:
    expected, stock = _logits(full), _logits(model)
    for other, bits in ((rounded, 8), (coarse, 4)):
        # mlx-lm itself fails on afm7, where a module's to_quantized takes no mode.
        own = getattr(other, "quant_predicate", None)
        quantize_model(
            other,
            {},
            GROUP_SIZE,
            bits,
            quant_predicate=lambda path, m, own=own: (
                "mode" in inspect.signature(m.to_quantized).parameters
                and (own is None or own(path, m))
            ),
        )
    mine, theirs = (
        {p for p, m in each.named_modules() if is_quantized(m)}
        for each in (model, rounded)
    )
    report = mlx_nibble.accelerate(model)
    return Outcome(
        error=distance(stock, expected),
        rounded=distance(_logits(rounded), expected),
        coarse=distance(_logits(coarse), expected),
        missing=tuple(sorted(theirs - mine)),
        accelerated=distance(_logits(model), stock),
        layers=(len(mine), len(report.swapped)),
    )


def _logits(model: nn.Module) -> np.ndarray:
    return to_numpy(model(tokens()[0]))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the norm of the difference relative to b's, where b is finite."""
    finite = np.isfinite(b)
    off = np.linalg.norm((a - b)[finite])
    return (
        float(off / np.linalg.norm(b[finite]))
        if (finite == np.isfinite(a)).all()
        else np.inf
    )

"""Options of a conversion."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mlx_nibble.formats import Format
from mlx_nibble.quantize.method import Method
from mlx_nibble.quantize.recipes import RECIPES

KEEP = ("quality", "values")
"""What an import keeps of a tensor that no quantized form of MLX holds exactly."""

OWN_TEXT = "self"
"""The source of a text that the model writes itself."""


@dataclass(frozen=True)
class Calibration:
    """The text that a model is calibrated on.

    Attributes:
        text: Source for :func:`mlx_nibble.evaluation.calibration_text.read_text`, or
            :data:`OWN_TEXT`.
        samples: Number of sequences, spread evenly over the text.
        length: Tokens of a sequence.
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
        bits: Width of a code of the recipe's base format.
        group_size: Group size of the recipe's base format.
        recipe: One of :data:`mlx_nibble.quantize.recipes.RECIPES`.
        target_bpw: Replaces the recipe and `bits`: the most bits per weight, with
            embedding, head, scales, biases and norms counted. Sensitivity decides how
            they are spent.
        method: The steps for each matrix.
        calibration: Needed by calibrated methods and by `target_bpw`.
        symmetric: Store scale-only weights (bias -2**(bits-1) * scale).
        dtype: Type of scales and of all that is not quantized; default: the model's.
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

"""Options of a distillation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """How to train a quantized model.

    Attributes:
        steps: Number of steps; training may end earlier.
        batch_size: Sequences of a step.
        codes: Train the codes too, in a dense copy of the model. Otherwise scales,
            biases and norms are trained, and the model stays quantized.
        learning_rate: The most that a step moves a code, a scale or a bias, in units of
            one level of its grid.
        seed: Order of the sequences.
    """

    steps: int = 200
    batch_size: int = 1
    codes: bool = False
    learning_rate: float = 0.004
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if min(self.steps, self.batch_size) < 1:
            raise ValueError(
                "[distill] steps and their sequences must be at least 1 but are "
                f"{self.steps} and {self.batch_size}."
            )
        if not 0 < self.learning_rate <= 1:
            raise ValueError(
                "[distill] the learning rate must be above 0 and at most 1 level a "
                f"step but is {self.learning_rate}."
            )

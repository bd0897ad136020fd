"""Options of a distillation."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_nibble.conversion.options import OWN_TEXT, Calibration

# Steps, and sequences of a step. On a GPU, 400 steps of 8 x 512 tokens bring SmolLM2 to
# +4 % at 4 bits (docs/results/quantization.md); a CPU takes seconds for 512 tokens.
_ON_GPU, _ON_CPU = (400, 8), (200, 1)
# The learning rate up to a mean width of codes, measured with SmolLM2 there too.
_RATES = ((3.5, 0.004), (4.5, 0.003), (8.0, 0.0015))
# Bytes of a weight whose code is trained with all others: its value, gradient, two
# moments and the dense weight, in float32. And the share of the memory for them: the
# rest is for activations, 100 KB for each token of SmolLM2.
_BYTES, _SHARE = 20, 0.5
# Sequences of the model's own text: more steps read them again.
_MOST_SEQUENCES = 6400
_LENGTH = 512

CODES = ("none", "blocks", "together")
"""How codes are trained: not at all, block by block, or all with the rest."""


@dataclass(frozen=True)
class Schedule:
    """A training whose every option is known; :class:`Training` documents them."""

    steps: int
    batch_size: int
    codes: str
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Training:
    """How to train a quantized model; None chooses for the device and the model.

    Attributes:
        steps: Number of steps; training may end earlier.
        batch_size: Sequences of a step.
        codes: One of :data:`CODES`: how codes are trained before, or with, scales,
            biases and norms.
        learning_rate: The most that a step moves a code, a scale or a bias, in units of
            one level of its grid.
        seed: Order of the sequences.
    """

    steps: int | None = None
    batch_size: int | None = None
    codes: str | None = None
    learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if any(n is not None and n < 1 for n in (self.steps, self.batch_size)):
            raise ValueError(
                "[distill] steps and their sequences must be at least 1 but are "
                f"{self.steps} and {self.batch_size}."
            )
        if self.codes not in (None, *CODES):
            raise ValueError(
                f"[distill] codes must be one of {CODES} but got {self.codes!r}."
            )
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise ValueError(
                "[distill] the learning rate must be above 0 and at most 1 level a "
                f"step but is {self.learning_rate}."
            )

    def schedule(self, gpu: bool, bits: float, weights: int) -> Schedule:
        """Return the training on a GPU or a CPU.

        Args:
            gpu: Whether a GPU trains.
            bits: Mean width of the model's codes.
            weights: Number of weights of the model.
        """
        room = _SHARE * mx.get_memory_limit() / _BYTES
        usual = "none" if not gpu else "together" if weights <= room else "blocks"
        steps, batch_size = _ON_GPU if gpu else _ON_CPU
        rate = next(rate for most, rate in _RATES if bits <= most)
        return Schedule(
            self.steps or steps,
            self.batch_size or batch_size,
            self.codes or usual,
            self.learning_rate or rate,
            self.seed,
        )

    def text(
        self, gpu: bool, source: str | None, samples: int | None, length: int | None
    ) -> Calibration:
        """Return the text to train on; None chooses.

        Args:
            gpu: Whether a GPU trains.
            source: `Calibration.text`; default: the model's own.
            samples: Number of sequences; default: those of all steps, to 6400.
            length: Tokens of a sequence; default: 512.
        """
        schedule = self.schedule(gpu, 0, 0)
        every = min(_MOST_SEQUENCES, schedule.steps * schedule.batch_size)
        return Calibration(
            source or OWN_TEXT,
            every if samples is None else samples,
            _LENGTH if length is None else length,
        )

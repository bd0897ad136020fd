"""The loop of training: it resumes after a kill and ends when nothing is gained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten

from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.distill.options import Schedule
from mlx_nibble.progress import Progress, Tell

Arrays = dict[str, mx.array]
Loss = Callable[[Mapping[str, mx.array], int], mx.array]
"""The loss of variables on a batch."""

_STATE = "state"
# Seconds between two states on disk: a kill loses no more work.
_SAVE_EVERY = 60
# The number of measurements on held-out text, and of those without a gain after which
# training ends.
_MEASUREMENTS, _PATIENCE = 12, 4
# The share of the steps in which the learning rate rises.
_WARM_UP = 1 / 16


@dataclass
class Trained:
    """The result of training.

    Attributes:
        best: The variables with the least loss on held-out text.
        losses: The losses on held-out text: of the start, then of each measurement.
        steps: Steps until the last measurement.
    """

    best: Arrays
    losses: list[float]
    steps: int


class Trainer:
    """Training by Adam, with its state in a workspace."""

    def __init__(
        self,
        start: Arrays,
        loss: Loss,
        train: Sequence[int],
        held_out: Sequence[int],
        options: Schedule,
        workspace: Workspace,
    ):
        """Begin, or continue the state of the workspace.

        Args:
            start: The variables before the first step.
            loss: The loss of variables on a batch.
            train: Indices of the batches to train on.
            held_out: Indices of the batches to measure on.
            options: How to train.
            workspace: The folder of the state.
        """
        self._loss, self._train, self._held_out = loss, train, held_out
        self._options, self._workspace = options, workspace
        self._gradient = mx.value_and_grad(loss)
        rise = max(1, round(_WARM_UP * options.steps))
        rate = options.learning_rate
        rates = [
            optimizers.linear_schedule(rate / rise, rate, rise),
            optimizers.cosine_decay(rate, max(1, options.steps - rise)),
        ]
        schedule = optimizers.join_schedules(rates, [rise])
        self._adam = optimizers.Adam(schedule, betas=[0.9, 0.99], bias_correction=True)
        self._adam.init(start)
        self._variables, self._best = start, start
        self._losses: list[float] = []
        self._step = 0
        if workspace.has_part(_STATE):
            self._restore()

    def run(self, progress: Progress, tell: Tell) -> Trained:
        """Train to the end; after Ctrl-C the state is on disk."""
        steps = self._options.steps
        every = -(-steps // _MEASUREMENTS)
        saved = time.monotonic()
        try:
            while self._step < steps and not self._is_done():
                if self._step % every == 0 and len(self._losses) <= self._step // every:
                    self._measure(tell)
                progress("Training", self._step, steps)
                self._advance()
                if time.monotonic() - saved > _SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
            if not self._is_done():
                self._measure(tell)
        except KeyboardInterrupt:
            self._save()
            tell(f"Stopped after step {self._step}: the same command continues.")
            raise
        progress("Training", steps, steps)
        return Trained(self._best, self._losses, self._step)

    def _advance(self) -> None:
        _, gradient = self._gradient(self._variables, self._batch(self._step))
        variables = self._adam.apply_gradients(gradient, self._variables)
        mx.eval(variables, self._adam.state)
        self._variables = variables
        self._step += 1

    def _batch(self, step: int) -> int:
        """Return the batch of a step: each once in every pass, in a random order."""
        turn, index = divmod(step, len(self._train))
        order = np.random.default_rng([self._options.seed, turn])
        return self._train[int(order.permutation(len(self._train))[index])]

    def _measure(self, tell: Tell) -> None:
        total = 0.0
        for index in self._held_out:
            total += float(np.array(self._loss(self._variables, index)))
        loss = float(np.float32(total / len(self._held_out)))  # as it is kept
        if loss < min(self._losses, default=float("inf")):
            self._best = self._variables
        self._losses.append(loss)
        tell(f"step {self._step}: divergence {loss:.5f} on held-out text")

    def _is_done(self) -> bool:
        """Tell whether the last measurements gained nothing."""
        best = int(np.argmin(self._losses)) if self._losses else 0
        return len(self._losses) - 1 - best >= _PATIENCE

    def _save(self) -> None:
        state: Any = tree_flatten(self._adam.state)
        adam = {f"adam.{k}": v for k, v in state}
        self._workspace.save_part(
            _STATE,
            {
                **{f"now.{k}": v for k, v in self._variables.items()},
                **{f"best.{k}": v for k, v in self._best.items()},
                **adam,
                "losses": mx.array(self._losses or [0.0], mx.float32),
                "counts": mx.array([self._step, len(self._losses)]),
            },
        )

    def _restore(self) -> None:
        kept = self._workspace.load_part(_STATE)
        mx.eval(kept)  # before the file is replaced

        def part(prefix: str) -> Arrays:
            return {
                k.removeprefix(prefix): v
                for k, v in kept.items()
                if k.startswith(prefix)
            }

        self._variables, self._best = part("now."), part("best.")
        moments = part("adam.")
        # Names of variables have dots, as paths do: they are no trees.
        state: dict[str, Any] = {
            name: {k: moments.pop(f"{name}.{k}") for k in ("m", "v")}
            for name in self._variables
        }
        self._adam.state = {**moments, **state}
        self._step, count = map(int, np.array(kept["counts"]))
        self._losses = [float(loss) for loss in np.array(kept["losses"])[:count]]

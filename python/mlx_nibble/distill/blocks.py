"""Training of codes block by block, for models whose dense copy has no room.

Each block learns to give the output of the original's block. Its input is that of the
trained blocks before it. The idea is that of AutoRound (Cheng et al. 2024, "Optimize
Weight Rounding via Signed Gradient Descent"); the variables are those of this package,
trained by Adam. One block of the model is in memory, with the hidden states of the
text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_unflatten

from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.distill.options import Schedule
from mlx_nibble.distill.variables import TrainedMatrix, Variables, find_norms
from mlx_nibble.io.checkpoint import dequantized_tensor
from mlx_nibble.layerwise.matrices import drop, parameters
from mlx_nibble.layerwise.stream import Step, arrays, steps
from mlx_nibble.layerwise.trace import part_of, trace
from mlx_nibble.progress import Progress

Arrays = dict[str, mx.array]

# Batches that blocks are trained on: AutoRound's default is 128 sequences.
_BATCHES = 128
# One batch in eight is held out: these batches say whether a block gained.
_HELD_OUT = 8


@dataclass
class BlockTraining:
    """A training of the blocks of a model.

    Attributes:
        student: The quantized model, dequantized; its parameters may be lazy.
        original: The original; likewise.
        matrices: The matrices of the quantized model.
        schedule: How to train: each block takes all steps.
        workspace: The folder of finished blocks.
        progress: Function called for each block.
    """

    student: nn.Module
    original: nn.Module
    matrices: Sequence[TrainedMatrix]
    schedule: Schedule
    workspace: Workspace
    progress: Progress

    def run(self, tokens: Sequence[mx.array]) -> Arrays:
        """Train every block on batches `[B, L]`; return the changed tensors, by path.

        Raises:
            ValueError: If the models do not run block by block.
        """
        some = tokens[:: max(1, len(tokens) // _BATCHES)][:_BATCHES]
        traced = trace(self.student, some[0])
        exact = steps(self.original, trace(self.original, some[0]), some)
        changed: Arrays = {}
        total, finished = len(traced.calls), []
        for index, step in enumerate(steps(self.student, traced, some)):
            self.progress("Training blocks", index, total)
            target = next(exact)
            for part in finished:
                drop(part)
            finished = [step.part, target.part] if step.last else []
            if not step.first:  # it shares the weights of a block that is trained
                continue
            name = f"block-{index:05}"
            mine = [
                m for m in self.matrices if part_of(m.path, traced.parts) == step.path
            ]
            block = _Block(step, target, mine, self.schedule)
            if not self.workspace.has_part(name):
                self.workspace.save_part(name, block.train())
            stored = self.workspace.load_part(name)
            mx.eval(stored)
            block.use(stored)
            changed |= stored
        self.progress("Training blocks", total, total)
        return changed


class _Block:
    """One block: its variables, inputs and targets."""

    def __init__(
        self,
        step: Step,
        target: Step,
        matrices: Sequence[TrainedMatrix],
        schedule: Schedule,
    ):
        self._step, self._target, self._schedule = step, target, schedule
        self._dot = f"{step.path}."
        originals = {self._dot + k: v for k, v in parameters(target.part).items()}
        norms = find_norms(
            {self._dot + k: v for k, v in parameters(step.part).items()}, [*matrices]
        )
        self._matrices = matrices
        self._variables = Variables([*matrices], norms, originals)
        step.part.set_dtype(mx.float32)

    def train(self) -> Arrays:
        """Return the block's tensors as a checkpoint stores them."""
        schedule, count = self._schedule, self._step.count
        targets = [arrays(self._target.run(i))[0] for i in range(count)]
        targets = [t.astype(mx.float32) for t in targets]
        power = sum(float(np.array(mx.square(t).mean())) for t in targets) / count
        kept = range(0, count, _HELD_OUT)
        seen = [i for i in range(count) if i not in kept] or [0]

        def loss(values: Mapping[str, mx.array], index: int) -> mx.array:
            self._put(self._variables.parameters(values))
            off = self._run(index) - targets[index]
            return mx.square(off).mean() / max(power, 1e-30)

        def measured(values: Mapping[str, mx.array]) -> float:
            return sum(float(np.array(loss(values, i))) for i in kept)

        rate = optimizers.cosine_decay(schedule.learning_rate, schedule.steps)
        adam = optimizers.Adam(rate, betas=[0.9, 0.99], bias_correction=True)
        variables = self._variables.start
        adam.init(variables)
        gradient = mx.value_and_grad(loss)
        numbers = np.random.default_rng([schedule.seed, count])
        for index in numbers.choice(seen, schedule.steps):
            _, slope = gradient(variables, int(index))
            variables = adam.apply_gradients(slope, variables)
            mx.eval(variables, adam.state)
        start = self._variables.start
        better = variables if measured(variables) < measured(start) else start
        return self._variables.stored(better)

    def use(self, stored: Mapping[str, mx.array]) -> None:
        """Let the block compute with its stored tensors."""
        values = dict(stored)
        for m in self._matrices:
            dense = dequantized_tensor(m.path, stored, m.group_size, m.bits)
            values[f"{m.path}.weight"] = dense
            del values[f"{m.path}.scales"], values[f"{m.path}.biases"]
        self._put({k: v.astype(mx.float32) for k, v in values.items()})

    def _run(self, batch: int) -> mx.array:
        return arrays(self._step.build(batch))[0].astype(mx.float32)

    def _put(self, values: Mapping[str, mx.array]) -> None:
        own = [(k.removeprefix(self._dot), v) for k, v in values.items()]
        self._step.part.update(tree_unflatten(own))

"""Distillation of a model folder: from a quantized model to a better one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from mlx_nibble import lm
from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.conversion.calibration import calibration_batches, text_digest
from mlx_nibble.conversion.card import write_card
from mlx_nibble.conversion.options import Calibration
from mlx_nibble.conversion.source import Source, weights_of
from mlx_nibble.conversion.values import require_all_finite
from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.distill.blocks import BlockTraining
from mlx_nibble.distill.options import Schedule, Training
from mlx_nibble.distill.report import (
    Distilled,
    Outputs,
    layer_errors,
    layer_outputs,
)
from mlx_nibble.distill.targets import loss_of, make_targets
from mlx_nibble.distill.text import Text, divided
from mlx_nibble.distill.train import Trained, Trainer
from mlx_nibble.distill.variables import (
    TrainedMatrix,
    Variables,
    find_matrices,
    find_norms,
    mean_width,
)
from mlx_nibble.io.checkpoint import read_checkpoint, save_weights
from mlx_nibble.io.config import read_config
from mlx_nibble.io.folder import Reserved, filling, reserved
from mlx_nibble.layerwise.matrices import natural, parameters
from mlx_nibble.progress import Progress, Tell, silent, untold

_TRAINED = Settings(repack=False)  # scales change in each step


def distill(
    start: str,
    reference: str,
    out: str | Path,
    training: Training,
    calibration: Calibration,
    progress: Progress = silent,
    tell: Tell = untold,
    trust_remote_code: bool = False,
) -> Distilled:
    """Train a quantized model to predict as its original does.

    A killed run continues when it is called again with the same arguments.

    Args:
        start: The quantized model: a folder, or a repository of the Hugging Face Hub.
        reference: The original: likewise.
        out: The folder to make; it must not exist.
        training: How to train.
        calibration: The text.
        progress: Function of the current work, steps done and all steps.
        tell: Function that is told what else the user should know, in one line.
        trust_remote_code: Whether the Python code of the models may run.

    Raises:
        ValueError: If an option or a model is wrong, `out` exists, or another process
            makes it.
        OSError: If files cannot be read or written.
    """
    with reserved(out, "distill") as place:
        folder, original = lm.model_folder(start), lm.model_folder(reference)
        return Run(
            folder,
            original,
            training,
            calibration,
            progress,
            tell,
            trust_remote_code,
        ).into(place)


@dataclass
class Run:
    """A distillation: its fields are the arguments of `distill`.

    Attributes:
        weights: The files of the reference, if the caller has their digest.
    """

    start: Path
    reference: Path
    training: Training
    calibration: Calibration
    progress: Progress
    tell: Tell
    trust: bool = False
    weights: Source | None = None

    def into(self, place: Reserved) -> Distilled:
        """Train, and write the folder."""
        config, arrays = read_checkpoint(self.start, "distill")
        _require_quantized(self.start, config)
        files = [
            weights_of(self.start, self.progress),
            self.weights or weights_of(self.reference, self.progress),
        ]
        quantized, _ = lm.load_full_precision(
            self.start, trust_remote_code=self.trust, dequantize=False
        )
        matrices = find_matrices(quantized)
        count = sum(a.size for a in parameters(self._original()).values())
        bits = mean_width(matrices)
        schedule = self.training.schedule(not lm.on_cpu(), bits, count)
        text = divided(self._tokens(files[1].digest, schedule))
        settings = _settings(files, text.tokens, schedule)
        workspace = Workspace(place.path, settings, self.tell)
        make_targets(self._original, text.tokens, workspace, self.progress)
        losses: list[float] = []
        if schedule.codes == "blocks":
            batches = [(i, text.tokens[i]) for i in text.kept]
            found = [loss_of(quantized, b, workspace, i) for i, b in batches]
            losses.append(float(np.mean(np.array(found))))
            blocks = self._blocks(matrices, schedule, workspace)
            better = blocks.run(text.tokens)
            arrays |= {_stored_name(k, arrays): v for k, v in better.items()}
            quantized.load_weights([*better.items()], strict=False)
            matrices = find_matrices(quantized)
        together = schedule.codes == "together"
        model, variables = self._student(quantized, matrices, together)

        def loss(values: Mapping[str, mx.array], index: int) -> mx.array:
            _use(model, variables, values)
            return loss_of(model, text.tokens[index], workspace, index)

        trainer = Trainer(
            variables.start, loss, text.seen, text.kept, schedule, workspace
        )
        trained = trainer.run(self.progress, self.tell)
        losses += trained.losses
        layers = self._layer_errors(model, variables, trained, text)
        nbytes = self._write(place, config, arrays, variables, trained, files)
        changes = variables.changes(trained.best)
        return Distilled(
            place.path, count, nbytes, losses, trained.steps, changes, layers
        )

    def _tokens(self, digest: str, schedule: Schedule) -> list[mx.array]:
        """Return the batches of the text; `digest` is that of the reference."""
        return calibration_batches(
            self.calibration,
            self.reference,
            digest,
            read_config(self.reference, "distill"),
            self.progress,
            self.trust,
            schedule.batch_size,
        )

    def _layer_errors(
        self, model: nn.Module, variables: Variables, trained: Trained, text: Text
    ) -> list[dict[str, Any]]:
        """Return how far layers were off before and after, on a held-out batch."""
        sample = text.tokens[text.kept[0]]

        def outputs() -> Outputs:
            _use(model, variables, trained.best)
            return layer_outputs(model, sample)

        return layer_errors(
            layer_outputs(self._original(), sample),
            {
                "start": lambda: layer_outputs(self._dense(self.start), sample),
                "trained": outputs,
            },
        )

    def _original(self) -> nn.Module:
        return self._dense(self.reference)

    def _dense(self, folder: Path) -> nn.Module:
        model, _ = lm.load_full_precision(folder, trust_remote_code=self.trust)
        if lm.on_cpu():
            model.set_dtype(mx.float32)
        return model

    def _blocks(
        self,
        matrices: list[TrainedMatrix],
        schedule: Schedule,
        workspace: Workspace,
    ) -> BlockTraining:
        student, _ = lm.load_full_precision(self.start, trust_remote_code=self.trust)
        return BlockTraining(
            student, self._original(), matrices, schedule, workspace, self.progress
        )

    def _student(
        self, quantized: nn.Module, matrices: list[TrainedMatrix], codes: bool
    ) -> tuple[nn.Module, Variables]:
        """Return the model to train, and its variables."""
        norms = find_norms(parameters(quantized), matrices)
        if not codes:
            if lm.on_cpu():
                lm.prepare(quantized, _TRAINED)
            else:
                quantized.set_dtype(mx.float32)
            return quantized, Variables(matrices, norms, None)
        dense = self._dense(self.start)
        dense.set_dtype(mx.float32)
        return dense, Variables(matrices, norms, parameters(self._original()))

    def _write(
        self,
        place: Reserved,
        config: dict[str, Any],
        arrays: dict[str, mx.array],
        variables: Variables,
        trained: Trained,
        files: Sequence[Source],
    ) -> int:
        """Write the folder; return the bytes of its tensors."""
        changed = variables.stored(trained.best)
        require_all_finite(dict(changed))
        arrays = {**arrays, **{_stored_name(k, arrays): v for k, v in changed.items()}}
        ordered = dict(sorted(arrays.items(), key=lambda item: natural(item[0])))
        nbytes = sum(a.nbytes for a in ordered.values())
        with filling(place) as folder:
            save_weights(folder, ordered)
            lm.save_companions(folder, self.start, config)
            write_card(folder, place.path.name, self.start)
            lm.require_loadable(folder, self.trust)
            for source in files:
                source.require_unchanged()
        return nbytes


def _use(
    model: nn.Module, variables: Variables, values: Mapping[str, mx.array]
) -> None:
    """Give the model the parameters that these values of its variables mean."""
    model.update(tree_unflatten([*variables.parameters(values).items()]))


def _settings(
    files: Sequence[Source], tokens: Sequence[mx.array], schedule: Schedule
) -> dict[str, Any]:
    """Return all that the targets and the state depend on."""
    return {
        "start": files[0].digest,
        "reference": files[1].digest,
        "options": asdict(schedule),
        "text": text_digest(tokens),
        "version": [version(n) for n in ("mlx-nibble", "mlx", "mlx-lm")],
    }


def _stored_name(path: str, arrays: Mapping[str, mx.array]) -> str:
    """Check that a tensor of the model is one of the checkpoint.

    Raises:
        ValueError: If the model's class renames tensors as it loads them.
    """
    if path not in arrays:
        raise ValueError(
            "[distill] the checkpoint must name its tensors as MLX does but has no "
            f"{path!r}: convert it first."
        )
    return path


def _require_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    if "quantization" not in config:
        raise ValueError(
            f"[distill] a quantized model is required but '{folder}' is none: make one "
            "with nibble convert -q."
        )

"""The loss of each matrix in each format, measured on calibration text.

The blocks of the model (the attention of a layer, its MLP, the embedding) are
quantized one at a time, once for each small width. The KL divergence of the whole
model's predictions is measured.

A divergence grows with the square of a small perturbation. Hence a block's divergence
is divided among its matrices in proportion to their squared errors, each weighted with
the mean square of its input. The same rule extrapolates to other group sizes and to
more bits. It never extrapolates to fewer bits: the growth of so large an error is no
longer quadratic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.evaluation.evaluate import kl_divergence, log_softmax
from mlx_nibble.formats import Format
from mlx_nibble.layerwise.cpu_math import fast_dense, to_numpy
from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.matrices import Matrix, matrices
from mlx_nibble.layerwise.replay import Replay
from mlx_nibble.layerwise.rows import rows
from mlx_nibble.layerwise.trace import trace
from mlx_nibble.progress import Progress, silent
from mlx_nibble.quantize.budget import FormatCost
from mlx_nibble.quantize.search import search

# Rows from which a matrix's error is estimated: their mean is within a few percent of
# the mean over all rows.
_ROWS = 128


def sensitivity(
    model: nn.Module,
    tokens: Sequence[mx.array],
    measured: Sequence[Format],
    formats: Sequence[Format],
    workspace: Workspace,
    progress: Progress = silent,
) -> dict[str, list[FormatCost]]:
    """Estimate the KL divergence that each matrix causes in each format.

    Args:
        model: A model in full precision, all of it in memory.
        tokens: Calibration batches `[B, L]`; a few hundred tokens are enough.
        measured: Formats to measure blocks in, of different bits. Where rows are no
            multiple of the group size, a smaller one is measured.
        formats: Candidates, of at least as many bits as the first measured format. A
            matrix has no choice of a format that does not fit it.
        workspace: The folder that keeps each block's choices; blocks found there are
            not measured again.
        progress: Function called for each block.

    Returns:
        The choices of each matrix; losses are in nats a token.
    """
    with fast_dense():
        return _Measurement(model, tokens, measured, formats, workspace, progress).run()


class _Measurement:
    def __init__(
        self,
        model: nn.Module,
        tokens: Sequence[mx.array],
        measured: Sequence[Format],
        formats: Sequence[Format],
        workspace: Workspace,
        progress: Progress,
    ):
        self.model, self.formats = model, formats
        self.measured = sorted(measured, key=lambda form: form.bits)
        self.workspace, self.progress = workspace, progress
        self.trace = trace(model, tokens[0])
        self.tokens = tokens
        self.matrices = [m for m in matrices(model) if measured[0].fitted(m.inputs)]

    def run(self) -> dict[str, list[FormatCost]]:
        blocks: dict[str, list[Matrix]] = {}
        for matrix in self.matrices:
            blocks.setdefault(matrix.path.rpartition(".")[0], []).append(matrix)
        kept = {name: self._kept(name) for name in blocks}
        if None in kept.values():
            self._measure(blocks, kept)
        return {
            path: options
            for choices in kept.values()
            for path, options in (choices or {}).items()
        }

    def _kept(self, name: str) -> dict[str, list[FormatCost]] | None:
        record = self.workspace.load_record(f"sensitivity-{name}")
        if record is None:
            return None
        return {
            path: [FormatCost(Format(**form), *rest) for form, *rest in options]
            for path, options in record.items()
        }

    def _keep(self, name: str, choices: Mapping[str, list[FormatCost]]) -> None:
        record = {
            path: [(asdict(c.form), c.nbytes, c.loss) for c in options]
            for path, options in choices.items()
        }
        self.workspace.save_record(f"sensitivity-{name}", record)

    def _measure(
        self,
        blocks: Mapping[str, list[Matrix]],
        kept: dict[str, dict[str, list[FormatCost]] | None],
    ) -> None:
        """Measure the blocks that the workspace does not have."""
        squares = self._squares()
        passes = [Replay(self.model, self.trace, batch) for batch in self.tokens]
        self.log_r = [log_softmax(one.logits) for one in passes]
        total = len(blocks) * len(self.measured)
        for i, (name, block) in enumerate(blocks.items()):
            if kept[name] is not None:
                continue
            divergences = {}
            for j, form in enumerate(self.measured):
                done = i * len(self.measured) + j
                self.progress("Measuring sensitivity", done, total)
                divergences[form] = self._divergence(block, form, passes)
            choices = self._share(block, divergences, squares)
            self._keep(name, choices)
            kept[name] = choices
        self.progress("Measuring sensitivity", total, total)

    def _squares(self) -> dict[str, np.ndarray]:
        """Return the mean squares of inputs of the matrices whose inputs are known."""
        squares: dict[str, np.ndarray] = {}
        modules = {m.path: m.module for m in self.matrices}

        def hook(path: str) -> Hook:
            def see(original: Any, *args: Any, **kwargs: Any) -> Any:
                found = rows(modules[path], *args, **kwargs)
                if found is not None:
                    squares[path] = squares.get(path, 0) + (found.x**2).sum(0)
                return original(*args, **kwargs)

            return see

        with intercepted([(module, hook(path)) for path, module in modules.items()]):
            for batch in self.tokens:
                mx.eval(self.model(batch))
        return squares

    def _divergence(
        self, block: list[Matrix], form: Format, passes: list[Replay]
    ) -> float:
        """Return the mean KL divergence with one block quantized."""
        originals = [m.module["weight"] for m in block]
        for matrix in block:
            weight = to_numpy(matrix.module["weight"])
            approx = search(weight, _fitted(form, matrix)).dequantize()
            matrix.module["weight"] = mx.array(approx)
        # An unseen matrix may be used anywhere: its weight is read without a call.
        first = min(self.trace.first.get(m.path, 0) for m in block)
        try:
            divergences = [
                kl_divergence(log_r, log_softmax(one.after(first)))
                for one, log_r in zip(passes, self.log_r, strict=True)
            ]
        finally:
            for matrix, weight in zip(block, originals, strict=True):
                matrix.module["weight"] = weight
        return float(np.concatenate(divergences).mean())

    def _share(
        self,
        block: list[Matrix],
        divergences: Mapping[Format, float],
        squares: Mapping[str, np.ndarray],
    ) -> dict[str, list[FormatCost]]:
        known: dict[tuple[str, Format], float] = {}

        def error(m: Matrix, form: Format) -> float:
            if (m.path, form) not in known:
                known[m.path, form] = _error(m, form, squares.get(m.path))
            return known[m.path, form]

        prices = {}
        for form, divergence in divergences.items():
            total = sum(error(m, _fitted(form, m)) for m in block)
            prices[form] = divergence / total if total > 0 else 0.0
        return {
            m.path: [
                FormatCost(
                    form,
                    form.nbytes(m.size // m.inputs, m.inputs),
                    prices[self._nearest(form)] * error(m, form),
                )
                for form in self.formats
                if form.fits(m.inputs)
            ]
            for m in block
        }

    def _nearest(self, form: Format) -> Format:
        """Return the measured format of most bits, at most those of `form`."""
        fewer = [m for m in self.measured if m.bits <= form.bits]
        return (fewer or self.measured[:1])[-1]


def _fitted(form: Format, matrix: Matrix) -> Format:
    fitted = form.fitted(matrix.inputs)
    assert fitted is not None  # self.matrices has no others
    return fitted


def _error(matrix: Matrix, form: Format, squares: np.ndarray | None) -> float:
    """Return the squared error of all rows, estimated from a sample."""
    rows = matrix.module["weight"].reshape(-1, matrix.inputs)
    step = max(1, rows.shape[0] // _ROWS)
    some = to_numpy(rows[::step])
    squared = (some - search(some, form).dequantize()) ** 2
    weighed = squared if squares is None else squared * squares
    return float(weighed.sum(dtype=np.float64)) * rows.shape[0] / len(some)

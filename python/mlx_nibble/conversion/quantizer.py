"""Quantization of a whole model, layer by layer, on calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.conversion.awq_layer import fold_scales
from mlx_nibble.conversion.values import require_all_finite, require_unclipped
from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.formats import Quantized
from mlx_nibble.io.checkpoint import dequantized_tensor, quantized_tensors
from mlx_nibble.layerwise.cpu_math import fast_dense, to_numpy
from mlx_nibble.layerwise.hessians import Collector, Inputs, not_finite
from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.matrices import (
    Matrix,
    drop,
    matrices,
    natural,
    parameters,
)
from mlx_nibble.layerwise.stream import Step, arrays, steps
from mlx_nibble.layerwise.trace import layers, part_of, trace
from mlx_nibble.progress import Progress, Tell, silent, untold
from mlx_nibble.quantize.method import Method, quantize
from mlx_nibble.quantize.recipes import Plan

# The weight of an embedding row's own error relative to the error of its logits, as a
# share of the mean diagonal of the head's Hessian.
_EMBEDDING_SHARE = 0.1
# AWQ chooses among twenty scales: this many tokens tell them apart.
_AWQ_TOKENS = 1024


def quantize_model(
    model: nn.Module,
    plan: Plan,
    method: Method,
    tokens: Sequence[mx.array],
    workspace: Workspace,
    progress: Progress = silent,
    tell: Tell = untold,
) -> dict[str, mx.array]:
    """Quantize the planned matrices, except in layers that the workspace has.

    Args:
        model: A model in full precision; its parameters may be lazy. The parameters of
            each finished layer are freed, so the model has no use afterwards.
        plan: The format of each matrix.
        method: The steps for each matrix.
        tokens: Calibration batches `[B, L]`; may be empty for a method that is not
            calibrated.
        workspace: The folder of finished layers.
        progress: Function called for each layer.
        tell: Function that is told which matrices the text does not calibrate.

    Returns:
        The lazy parameters of the quantized model.
    """
    with fast_dense():
        run = _Run(model, plan, method, tokens, workspace, progress)
        result = run.all_parameters()
    if run.uncalibrated and run.tokens:
        count, first = len(run.uncalibrated), run.uncalibrated[0]
        tell(
            f"Without calibration: {count} of {len(plan)} matrices, {first} first. "
            "The model does more with them than multiply, or never calls them."
        )
    return result


class _Run:
    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        method: Method,
        tokens: Sequence[mx.array],
        workspace: Workspace,
        progress: Progress,
    ):
        self.model, self.plan, self.method = model, plan, method
        self.tokens = tokens if method.calibrated else []
        self.workspace, self.progress = workspace, progress
        # Without inputs nothing runs, so a model that cannot run is quantized too.
        self.trace = trace(model, self.tokens[0]) if self.tokens else None
        self.parts = self.trace.parts if self.trace else layers(model)
        self.matrices: dict[str | None, list[Matrix]] = {}
        for matrix in matrices(model):
            if matrix.path in plan:
                part = part_of(matrix.path, self.parts)
                self.matrices.setdefault(part, []).append(matrix)
        self.dtypes = {k: v.dtype for k, v in parameters(model).items()}
        self.uncalibrated: list[str] = []

    def all_parameters(self) -> dict[str, mx.array]:
        total = len(self.parts)
        self._outside()
        for index, (path, step) in enumerate(self._first_calls()):
            name = f"layer-{index:05}"
            if index < self.workspace.finished:
                self.progress("Running finished layers", index, total)
            else:
                self.progress("Quantizing", index, total)
                self._part(path, step, name)
                self.workspace.finish_layer(index + 1)
            self._restore(path, name)
        self.progress("Quantizing", total, total)
        stored = self.workspace.load_part("outside")
        for index in range(total):
            stored |= self.workspace.load_part(f"layer-{index:05}")
        # MLX loads tensors in an order of its own.
        return dict(sorted(stored.items(), key=lambda item: natural(item[0])))

    def _first_calls(self) -> Iterator[tuple[str, Step | None]]:
        """Yield each part once, before later parts run; with its inputs, if any."""
        if self.trace is None or self.workspace.finished == len(self.parts):
            for path in self.parts:
                yield path, None
            return
        before = None
        for step in steps(self.model, self.trace, self.tokens):
            if before is not None and before.last:
                drop(before.part)
            before = step
            if step.first:
                yield step.path, step
        if before is not None:
            drop(before.part)

    def _outside(self) -> None:
        """Quantize the matrices outside all parts, and put them into the model."""
        if not self.workspace.has_part("outside"):
            outside = self.matrices.get(None, [])
            known = self._outside_inputs(outside)
            done = {}
            for matrix in outside:
                inputs = known.get(matrix.path)
                if inputs is not None and isinstance(matrix.module, nn.Embedding):
                    share = _EMBEDDING_SHARE * np.diagonal(inputs.hessian).mean()
                    inputs.hessian[np.diag_indices_from(inputs.hessian)] += share
                done[matrix.path] = self._quantize(matrix, inputs)
            stored = self._parameters("", self.model, done)
            stored = {k: v for k, v in stored.items() if not part_of(k, self.parts)}
            self.workspace.save_part("outside", stored)
        self._restore(None, "outside")

    def _outside_inputs(self, outside: list[Matrix]) -> dict[str, Inputs]:
        """Return inputs in the full-precision model, above all the head's."""
        if not self.tokens or not outside:
            return {}
        # A quarter of the text is enough for one matrix.
        some = self.tokens[:: 4 if len(self.tokens) >= 8 else 1]
        collector = Collector({m.path: m.module for m in outside})
        parts = [(part, _checked(path)) for path, part in self.parts.items()]
        with intercepted(parts), collector.watching():
            for i, batch in enumerate(some):
                self.progress("Reading the output projection", i, len(some))
                mx.eval(self.model(batch))
                collector.observe()
        return collector.result()

    def _part(self, path: str, step: Step | None, name: str) -> None:
        """Quantize a part, and save it under a name."""
        part, mine = self.parts[path], self.matrices.get(path, [])
        known: dict[str, Inputs] = {}
        if step is not None:
            # NumPy's BLAS computes in float32, and a Hessian needs float32.
            part.set_dtype(mx.float32)
            if self.method.awq:
                self._scale_inputs(path, mine, step)
            known = self._inputs(mine, step)
        done = {m.path: self._quantize(m, known.get(m.path)) for m in mine}
        self.workspace.save_part(name, self._parameters(path, part, done))
        if step is None:
            drop(part)

    def _restore(self, path: str | None, name: str) -> None:
        """Put a saved part into the model, its matrices dequantized."""
        if self.trace is None:
            return
        stored = self.workspace.load_part(name)
        quantized = self.matrices.get(path, [])
        forms = [(m.path, self.plan[m.path]) for m in quantized]
        dense = {
            f"{p}.weight": dequantized_tensor(p, stored, form.group_size, form.bits)
            for p, form in forms
        }
        gone = {f"{m.path}.{k}" for m in quantized for k in ("scales", "biases")}
        plain = {k: v for k, v in stored.items() if k not in gone}
        self.model.load_weights([*{**plain, **dense}.items()], strict=False)
        if path is not None:
            self.parts[path].set_dtype(mx.float32)

    def _scale_inputs(self, path: str, mine: list[Matrix], step: Step) -> None:
        every = max(1, sum(t.size for t in self.tokens) // _AWQ_TOKENS)
        some = range(step.count)[::every]
        fold_scales(
            step.part,
            {m.path.removeprefix(f"{path}."): self.plan[m.path] for m in mine},
            lambda i: step.run(some[i]),
            len(some),
        )

    def _inputs(self, mine: list[Matrix], step: Step) -> dict[str, Inputs]:
        collector = Collector({m.path: m.module for m in mine})
        with collector.watching():
            for batch in range(step.count):
                step.run(batch)
                collector.observe()
        return collector.result()

    def _quantize(self, matrix: Matrix, inputs: Inputs | None) -> Quantized:
        weight, form = to_numpy(matrix.module["weight"]), self.plan[matrix.path]
        if inputs is None:
            if not isinstance(matrix.module, nn.Embedding):
                self.uncalibrated.append(matrix.path)
            q = quantize(weight, form, self.method)
        else:
            q = quantize(weight, form, self.method, inputs.hessian, inputs.rows)
        top = float(abs(weight).max(initial=0))
        require_unclipped(matrix.path, q, form.scale_dtype, top)
        return q

    def _parameters(
        self, prefix: str, module: nn.Module, done: Mapping[str, Quantized]
    ) -> dict[str, mx.array]:
        """Return a module's parameters in their stored form."""
        stored = {}
        dot = f"{prefix}." if prefix else ""
        for name, value in parameters(module).items():
            path = dot + name
            owner = path.rpartition(".")[0]
            if path.endswith(".weight") and owner in done:
                q, form = done[owner], self.plan[owner]
                stored |= quantized_tensors(
                    owner, q.words(), q.scales, q.biases, form.scale_dtype
                )
            else:
                stored[path] = value.astype(self.dtypes[path])
        # AWQ's scales, or a weight at the edge of the range, can leave it.
        require_all_finite(dict(stored))
        # MLX loads tensors in an order of its own.
        return dict(sorted(stored.items(), key=lambda item: natural(item[0])))


def _checked(path: str) -> Hook:
    """Return a hook that names the first part whose result is not a number."""

    def hook(original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if any(mx.isnan(a).any() for a in arrays(result)):
            raise not_finite(f"results of {path}")
        return result

    return hook

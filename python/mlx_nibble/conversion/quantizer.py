"""Quantization of a whole model, layer by layer, on calibration text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.conversion.awq_layer import fold_scales
from mlx_nibble.conversion.values import require_all_finite
from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.formats import Quantized
from mlx_nibble.io.checkpoint import quantized_tensors
from mlx_nibble.layerwise.cpu_math import fast_dense, to_numpy
from mlx_nibble.layerwise.hessians import Collector, Inputs, hessian
from mlx_nibble.layerwise.intercept import intercepted
from mlx_nibble.layerwise.matrices import Matrix, matrices, natural, parameters
from mlx_nibble.layerwise.stream import LayerStream
from mlx_nibble.progress import Progress, silent
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

    Returns:
        The lazy parameters of the quantized model.
    """
    with fast_dense():
        run = _Run(model, plan, method, tokens, workspace, progress)
        return run.all_parameters()


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
        self.workspace, self.progress = workspace, progress
        self.stream = LayerStream(model, tokens if method.calibrated else [])
        names = {id(module): path for path, module in model.named_modules()}
        self.layer_paths = [names[id(layer)] for layer in self.stream.layers]
        self.matrices = [m for m in matrices(model) if m.path in plan]
        self.dtypes = {k: v.dtype for k, v in parameters(model).items()}

    def all_parameters(self) -> dict[str, mx.array]:
        total = len(self.stream.layers)
        head = self._head_inputs()
        self._outside(head)
        states = self._states()
        for index in range(self.workspace.finished, total):
            self.progress("Quantizing", index, total)
            states = self._layer(index, states)
        self.progress("Quantizing", total, total)
        parameters = self.workspace.load_part("outside")
        for index in range(total):
            parameters |= self.workspace.load_part(f"layer-{index:05}")
        # MLX loads tensors in an order of its own.
        return dict(sorted(parameters.items(), key=lambda item: natural(item[0])))

    def _head_inputs(self) -> Inputs | None:
        """Return the inputs of the output projection of the full-precision model."""
        head = self._head()
        if head is None or not self.stream.tokens or self.workspace.has_part("outside"):
            return None
        method = "as_linear" if isinstance(head, nn.Embedding) else "__call__"
        # A quarter of the text is enough for one matrix.
        some = self.stream.tokens[:: 4 if len(self.stream.tokens) >= 8 else 1]
        inputs: list[Inputs] = []

        def see(_: Any, x: mx.array) -> mx.array:
            inputs.append(Inputs([], hessian(x), x.size // x.shape[-1]))
            return x

        with intercepted([(head, see)], method):
            for i, batch in enumerate(some):
                self.progress("Reading the output projection", i, len(some))
                mx.eval(self.model(batch))
        if not inputs:
            return None
        return Inputs(
            [], np.sum([i.hessian for i in inputs], 0), sum(i.rows for i in inputs)
        )

    def _head(self) -> nn.Module | None:
        """Return the module that computes the logits: the head, or a tied embedding."""
        outside = [m for m in self.matrices if not self._layer_of(m.path)]
        heads = [m.module for m in outside if m.path.split(".")[-1] == "lm_head"]
        tied = [m.module for m in outside if isinstance(m.module, nn.Embedding)]
        return (heads or tied or [None])[0]

    def _layer_of(self, path: str) -> str | None:
        for layer in self.layer_paths:
            if path.startswith(f"{layer}."):
                return layer
        return None

    def _outside(self, head_inputs: Inputs | None) -> None:
        """Quantize the matrices outside the layers, and put them into the model."""
        outside = [m for m in self.matrices if not self._layer_of(m.path)]
        if not self.workspace.has_part("outside"):
            head = self._head()
            done = {}
            for matrix in outside:
                inputs = head_inputs if matrix.module is head else None
                if inputs is not None and isinstance(matrix.module, nn.Embedding):
                    share = _EMBEDDING_SHARE * np.diagonal(inputs.hessian).mean()
                    inputs.hessian[np.diag_indices_from(inputs.hessian)] += share
                done[matrix.path] = self._quantize(matrix, inputs)
            part = self._parameters("", self.model, done)
            part = {k: v for k, v in part.items() if not self._layer_of(k)}
            self.workspace.save_part("outside", part)
        loaded = self.workspace.load_part("outside")
        for matrix in outside:
            matrix.module["weight"] = self._dequantized(matrix, loaded)

    def _states(self) -> list[mx.array]:
        """Return the inputs of the first layer that is not finished."""
        if not self.stream.tokens:
            return []
        embedded = self.stream.embed()  # also records the layers' arguments
        finished = self.workspace.finished
        return self.workspace.states() if finished else embedded

    def _layer(self, index: int, states: list[mx.array]) -> list[mx.array]:
        layer, prefix = self.stream.layers[index], self.layer_paths[index]
        mine = [m for m in self.matrices if self._layer_of(m.path) == prefix]
        # NumPy's BLAS computes in float32, and a Hessian needs float32.
        layer.set_dtype(mx.float32)
        if self.method.awq:
            self._scale_inputs(index, mine, states)
        known = self._inputs(index, mine, states)
        done = {m.path: self._quantize(m, known.get(m.path)) for m in mine}
        part = self._parameters(prefix, layer, done)
        self.workspace.save_part(f"layer-{index:05}", part)
        for matrix in mine:
            matrix.module["weight"] = self._dequantized(matrix, part)
        after = [self.stream.call(index, i, x) for i, x in enumerate(states)]
        self.workspace.finish_layer(index + 1, after)
        _drop(layer)
        return after

    def _scale_inputs(
        self, index: int, mine: list[Matrix], states: list[mx.array]
    ) -> None:
        some = states[:: max(1, len(states) * states[0].shape[1] // _AWQ_TOKENS)]
        prefix = f"{self.layer_paths[index]}."
        fold_scales(
            self.stream.layers[index],
            {m.path.removeprefix(prefix): self.plan[m.path] for m in mine},
            lambda i: self.stream.call(index, i, some[i]),
            len(some),
        )

    def _inputs(
        self, index: int, mine: list[Matrix], states: list[mx.array]
    ) -> dict[str, Inputs]:
        collector = Collector({m.path: m.module for m in mine})
        with intercepted(collector.hooks()):
            for i, x in enumerate(states):
                self.stream.call(index, i, x)
                collector.observe()
        return {path: i for i in collector.result() for path in i.paths}

    def _quantize(self, matrix: Matrix, inputs: Inputs | None) -> Quantized:
        weight, form = to_numpy(matrix.module["weight"]), self.plan[matrix.path]
        if inputs is None:
            return quantize(weight, form, self.method)
        return quantize(weight, form, self.method, inputs.hessian, inputs.rows)

    def _dequantized(
        self, matrix: Matrix, parameters: Mapping[str, mx.array]
    ) -> mx.array:
        form = self.plan[matrix.path]
        return mx.dequantize(
            parameters[f"{matrix.path}.weight"],
            parameters[f"{matrix.path}.scales"].astype(mx.float32),
            parameters[f"{matrix.path}.biases"].astype(mx.float32),
            group_size=form.group_size,
            bits=form.bits,
        )

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
        return stored


def _drop(layer: nn.Module) -> None:
    """Free a layer's parameters."""
    empty = mx.zeros((0,))
    for module in layer.modules():
        for name, value in module.items():
            if isinstance(value, mx.array):
                module[name] = empty

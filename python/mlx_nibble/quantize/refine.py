r"""Refinement of a quantized matrix, by coordinate descent.

GPTQ fixes a code before the later ones are known. Here every code is set to its best
value given all the others. Then the scale and the bias of its group are set, and so on
in turns. With the gradient :math:`R = (W - \hat W) H`, the best real value of a weight
is :math:`\hat w_j + R_j / H_{jj}`. The nearest level to it is the best code (Behdin et
al. 2023, "QuantEase"). Scale and bias of a group solve a 2 x 2 system. No step
increases the error of the layer's output.
"""

from __future__ import annotations

import numpy as np

from mlx_nibble.formats import Format, Quantized, round_to
from mlx_nibble.quantize.gptq import require_hessian
from mlx_nibble.quantize.hessian import damped
from mlx_nibble.quantize.threads import threads_for

_TINY = np.float32(1e-30)


def refine(
    weight: np.ndarray,
    quantized: Quantized,
    hessian: np.ndarray,
    form: Format,
    *,
    sweeps: int = 4,
    damping: float = 0.01,
) -> Quantized:
    """Lower `tr (W - W_hat) H (W - W_hat)^T`, H damped as in GPTQ.

    Args:
        weight: Weight W, `[N, K]`.
        quantized: Matrix to start from.
        hessian: Hessian H, `[K, K]`.
        form: Format of `quantized`.
        sweeps: Number of passes over all codes and scales.
        damping: Share of the mean diagonal that is added to it, as in `gptq`.

    Raises:
        ValueError: If shapes do not fit together, or the Hessian is not finite.
    """
    require_hessian(weight, hessian)
    h = damped(hessian, damping).astype(np.float32)
    state = _State(weight, quantized, h, form)
    for _ in range(sweeps):
        with threads_for(2 * form.group_size * weight.size):
            for group in range(state.scales.shape[0]):
                state.improve(group)
        state.refresh()
    return state.result()


class _State:
    """A matrix under refinement; arrays are [K, N], so that an input is contiguous."""

    def __init__(
        self, weight: np.ndarray, q: Quantized, h: np.ndarray, form: Format
    ) -> None:
        self.weight = np.ascontiguousarray(weight.T, np.float32)
        self.codes = np.ascontiguousarray(q.codes.T).astype(np.float32)
        self.scales = np.ascontiguousarray(q.scales.T)  # [G, N]
        self.biases = np.ascontiguousarray(q.biases.T)
        self.size = q.group_size
        self.h, self.form = h, form
        self.refresh()

    def refresh(self) -> None:
        """Compute the gradient anew: its updates accumulate rounding errors."""
        approx = self.codes * np.repeat(self.scales, self.size, 0)
        approx += np.repeat(self.biases, self.size, 0)
        self.gradient = self.h @ (self.weight - approx)

    def improve(self, group: int) -> None:
        """Set the codes of a group, then its scale and bias."""
        part = slice(group * self.size, (group + 1) * self.size)
        h = self.h[part, part]
        gradient = self.gradient[part]
        before = self.codes[part] * self.scales[group] + self.biases[group]
        self._set_codes(group, part, h, gradient)
        self._set_grid(group, part, h, gradient)
        after = self.codes[part] * self.scales[group] + self.biases[group]
        rest = self.h[:, part] @ (after - before)
        self.gradient -= rest

    def _set_codes(
        self, group: int, part: slice, h: np.ndarray, gradient: np.ndarray
    ) -> None:
        """Pass once over the inputs of a group; `gradient` does not change."""
        scale, codes = self.scales[group], self.codes[part]
        inner = gradient.copy()
        for j in range(self.size):
            move = inner[j] / (scale * h[j, j])
            code = np.clip(np.rint(codes[j] + move), 0, self.form.levels)
            step = (code - codes[j]) * scale
            codes[j] = code
            inner -= h[j, :, None] * step
        self._inner = inner

    def _set_grid(
        self, group: int, part: slice, h: np.ndarray, gradient: np.ndarray
    ) -> None:
        """Solve for scale and bias given the codes; keep them where the error falls."""
        inner, codes = self._inner, self.codes[part]
        half = np.float32(2 ** (self.form.bits - 1))
        if self.form.symmetric:
            signed = codes - half
            power = np.einsum("jn,jn->n", signed, h @ signed)
            pull = np.einsum("jn,jn->n", signed, inner)
            scale = self.scales[group] + pull / np.maximum(power, _TINY)
            bias = None
        else:
            hq = h @ codes
            qq = np.einsum("jn,jn->n", codes, hq)
            q1 = hq.sum(0)
            one = np.float32(h.sum())
            pull_q = np.einsum("jn,jn->n", codes, inner)
            pull_1 = inner.sum(0)
            # Eliminate the bias: around the mean code, sums do not cancel.
            power = qq - q1 * q1 / one
            solvable = power > np.float32(1e-4) * qq
            step = (pull_q - pull_1 * q1 / one) / np.where(solvable, power, 1)
            step = np.where(solvable, step, 0)
            scale = round_to(self.scales[group] + step, self.form.scale_dtype)
            # The best bias for the stored scale.
            step = scale - self.scales[group]
            bias = self.biases[group] + (pull_1 - step * q1) / one
        self._accept(group, codes, inner, h, scale, bias)

    def _accept(
        self,
        group: int,
        codes: np.ndarray,
        inner: np.ndarray,
        h: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray | None,
    ) -> None:
        scale = round_to(scale, self.form.scale_dtype)
        if bias is None:
            bias = np.multiply(scale, -np.float32(2 ** (self.form.bits - 1)))
        bias = round_to(bias, self.form.scale_dtype)
        delta = codes * (scale - self.scales[group]) + (bias - self.biases[group])
        gain = np.einsum("jn,jn->n", delta, 2 * inner - h @ delta)
        better = (gain > 0) & (scale != 0)
        self.scales[group] = np.where(better, scale, self.scales[group])
        self.biases[group] = np.where(better, bias, self.biases[group])

    def result(self) -> Quantized:
        return Quantized(
            np.ascontiguousarray(self.codes.T).astype(np.uint8),
            np.ascontiguousarray(self.scales.T),
            np.ascontiguousarray(self.biases.T),
            self.form.bits,
        )

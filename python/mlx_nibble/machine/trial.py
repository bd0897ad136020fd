"""The trial of a kernel: a small random problem, compared with a product in float64.

The trial decides whether the kernel may be used on this machine; see :mod:`verdicts`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_nibble import numerics

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Verdict:
    """The result of a kernel's trial.

    Attributes:
        kernel: Name of the kernel.
        failure: Reason not to use the kernel; None if it may be used.
        lasting: Whether another trial would end alike. False for the failure of a GPU
            that is out of memory, or was reset because of another process.
    """

    kernel: str
    failure: str | None = None
    lasting: bool = field(default=True, compare=False)

    @property
    def ok(self) -> bool:
        """Whether the kernel may be used."""
        return self.failure is None


@dataclass(frozen=True)
class Trial:
    """A small problem, with the fields of csrc/core/trial.h.

    Kinds, with w_hat [experts, N, K] and indices lhs and rhs [B]:

    * product: y[b] = x[lhs[b]] @ w_hat[rhs[b]].T, x [rows, M, K], y [B, M, N], with
      bias [N] and residual [B, M, N] added if epilogue
    * not_transposed: y[b] = x[lhs[b]] @ w_hat[rhs[b]], x [rows, M, N], y [B, M, K]
    * swiglu: silu of the product with w, times the product with up_w
    * joint: y[b] = x[0] @ w_hat[b].T + bias[b], x [1, M, K], bias [B, N], B = experts;
      each b has its own arrays: w, w1, w2
    * dequantize: y = w_hat [N, K], without x
    * gradient: y [2, experts, N, K / group_size] in float32: sums over each group of
      codes * d, and of d, where d[e] is the sum of dy[b].T @ x[lhs[b]] over the b with
      rhs[b] = e

    Attributes:
        kind: One of the kinds above.
        sorted: True if rhs never decreases.
        epilogue: True if a bias and a residual are added to the product.
        dtype: Type of x and y.
        scale_dtype: Type of scales and biases.
        mode: One of `formats.MODES`.
    """

    kind: str
    B: int
    rows: int
    M: int
    N: int
    K: int
    experts: int
    sorted: bool
    epilogue: bool
    dtype: mx.Dtype
    scale_dtype: mx.Dtype
    bits: int
    group_size: int
    mode: str


# Parts of the errors that belong to a kernel: of MLX, which cannot compile it, and of
# ours, for too many threads.
_LASTING = ("Unable to build", "Unable to load kernel", "threads in a th")
# Parts of the first, if Metal's compiler service has crashed.
_PASSING = ("XPC", "interrupted")


def gpu_is_sound() -> bool:
    """Return whether an operation of MLX gives the right result on the GPU now."""
    try:
        numbers = mx.arange(64, dtype=mx.float32, stream=mx.gpu)
        return mx.sum(numbers * numbers, stream=mx.gpu).item() == 85344
    except (RuntimeError, ValueError):
        return False


def check(kernel: str, ext: Any) -> Verdict | None:
    """Run a kernel's trial.

    Args:
        kernel: A name from ``ext.kernels()``, or ``ext.view_kernel``.
        ext: The extension.

    Returns:
        The verdict; None if this machine's GPU never uses the kernel.
    """
    if kernel == ext.view_kernel:
        return _check_views(ext)
    fields = ext.trial(kernel)
    if fields is None:
        return None
    return judge(kernel, Trial(**fields), partial(ext.run_trial, kernel))


# A product whose x is a view, and one whose scales are, which have one byte each.
_VIEWS = {
    # CUDA's kernels have no float32.
    "x": [
        (8, 64, 128, dtype, dtype, 4, 64, "affine", 0, False)
        for dtype in (mx.float32, mx.float16)
    ],
    "scales": [(8, 64, 128, mx.float16, mx.uint8, 4, 32, "mxfp4", 0, False)],
}


def _check_views(ext: Any) -> Verdict | None:
    """Run the trials of products with a view, which the launch copies first."""
    verdict = None
    for operand, shapes in _VIEWS.items():
        kernels = [kernel for shape in shapes for kernel in ext.kernels_of(shape)]
        fields = ext.trial(kernels[0]) if kernels else None
        if fields is None:
            continue
        run = partial(_run_with_a_view, ext, kernels[0], operand)
        verdict = judge(ext.view_kernel, Trial(**fields), run)
        if not verdict.ok:
            break
    return verdict


def _run_with_a_view(
    ext: Any, product: str, operand: str, operands: dict[str, mx.array]
) -> mx.array:
    turned = mx.contiguous(mx.moveaxis(operands[operand], -1, 0))
    view = mx.moveaxis(turned, 0, -1)
    mx.eval(view)
    return ext.run_trial(product, operands | {operand: view})


def judge(
    name: str, trial: Trial, run: Callable[[dict[str, mx.array]], mx.array]
) -> Verdict:
    """Compare a computation with the dequantized product in float64.

    Args:
        name: Kernel of the verdict.
        trial: The problem.
        run: Function that returns y. Its argument holds evaluated arrays by name: w
            [experts, N, K * bits / 32], scales, biases, x, lhs_indices, rhs_indices;
            for a gradient also dy, and order.
    """
    operands = _operands(trial)
    exact, allowed = _reference(trial, operands)
    try:
        y = run(_bound(trial, operands))
        mx.eval(y)
    except (RuntimeError, ValueError) as error:
        text = _one_line(error)
        lasting = any(part in text for part in _LASTING)
        return Verdict(name, text, lasting and not any(p in text for p in _PASSING))
    return Verdict(name, _disagreement(_values(y), exact, allowed))


def _operands(trial: Trial) -> dict[str, mx.array]:
    """Return random operands by the names of csrc/core/launch_plan.h.

    All codes occur; scales have both signs.
    """
    import numpy as np

    from mlx_nibble.formats import MODES

    rng = np.random.default_rng(0)
    operands = {}
    for prefix in ("", "up_"):
        words = (trial.experts, trial.N, trial.K * trial.bits // 32)
        groups = (trial.experts, trial.N, trial.K // trial.group_size)
        w = rng.integers(0, 2**32, words, dtype=np.uint32)
        if not MODES[trial.mode].stores_biases:
            w, scales = _floats(trial.mode, w, groups, rng)
            operands |= {f"{prefix}w": mx.array(w), f"{prefix}scales": mx.array(scales)}
            continue
        scales = rng.uniform(0.5, 1.5, groups) * rng.choice([-1, 1], groups)
        scales = mx.array((scales / 2**trial.bits).astype(np.float32))
        scales = scales.astype(trial.scale_dtype)
        zero = 2 ** (trial.bits - 1)
        if not MODES[trial.mode].symmetric:
            zero = mx.array(rng.uniform(0, 2**trial.bits, groups).astype(np.float32))
        operands |= {
            f"{prefix}w": mx.array(w),
            f"{prefix}scales": scales,
            # A power of two times a scale is exact, as symmetry requires.
            f"{prefix}biases": (-zero * scales).astype(trial.scale_dtype),
        }
    width = trial.N if trial.kind == "not_transposed" else trial.K
    x = rng.standard_normal((trial.rows, trial.M, width)).astype(np.float32)
    if trial.kind == "swiglu":
        x /= _excess(trial, operands)
    rhs = rng.integers(0, trial.experts, trial.B, dtype=np.uint32)
    if trial.kind == "joint":
        rhs = np.arange(trial.B, dtype=np.uint32)
    operands |= {
        "x": mx.array(x).astype(trial.dtype),
        "lhs_indices": mx.array(rng.integers(0, trial.rows, trial.B, dtype=np.uint32)),
        "rhs_indices": mx.array(np.sort(rhs) if trial.sorted else rhs),
    }
    if trial.kind == "gradient":
        dy = rng.standard_normal((trial.B, trial.M, trial.N)).astype(np.float32)
        order = np.argsort(rhs, kind="stable").astype(np.uint32)
        operands |= {"dy": mx.array(dy).astype(trial.dtype), "order": mx.array(order)}
    if trial.epilogue:
        shapes = {"bias": (trial.N,), "residual": (trial.B, trial.M, trial.N)}
        if trial.kind == "joint":
            shapes = {"bias": (trial.B, 1, trial.N)}
        for name, shape in shapes.items():
            addend = rng.standard_normal(shape).astype(np.float32)
            operands[name] = mx.array(addend).astype(trial.dtype)
    mx.eval(operands)
    return operands


def _floats(
    mode: str, w: np.ndarray, groups: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes without NaN, and scales near 1, for a mode of floats."""
    import numpy as np

    from mlx_nibble.floats import SCALES

    if mode == "mxfp8":
        codes = w.view(np.uint8)
        w = np.where(codes & 0x7F == 0x7F, 0, codes).astype(np.uint8).view(np.uint32)
    near = np.flatnonzero((abs(SCALES[mode]) >= 0.25) & (abs(SCALES[mode]) <= 4))
    return w, rng.choice(near, groups).astype(np.uint8)


def _excess(trial: Trial, operands: dict[str, mx.array]) -> float:
    """Return a power of two by which x is divided, so that silu(g) * u has room.

    Then g and u have a deviation of 32 at most, and float16 holds their product.
    """
    import numpy as np

    w_hat, _ = _weights(trial, operands, "")
    deviation = np.sqrt(trial.K * np.square(w_hat).mean())
    return max(1.0, 2.0 ** np.ceil(np.log2(deviation / 32)))


def _bound(trial: Trial, operands: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return the operands of a launch: joint products have one array each."""
    if trial.kind != "joint":
        return operands
    bound = {"x": operands["x"]}
    for name in ("w", "scales", "biases", "bias"):
        for i, part in enumerate(operands[name]):
            # Adding zeros copies: kernels cannot read an array with an offset.
            bound[f"{name}{i or ''}"] = part + mx.zeros_like(part)
    mx.eval(bound)
    return bound


def _reference(
    trial: Trial, operands: dict[str, mx.array]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the result in float64 and the error bound of each element."""
    u32 = numerics.UNIT_ROUNDOFF["float32"]
    if trial.kind == "gradient":
        return _gradient(trial, operands)
    if trial.kind == "dequantize":
        exact, magnitude = (a[0] for a in _weights(trial, operands, ""))
        off = 2 * u32 * magnitude
    elif trial.kind == "swiglu":
        gate, off_gate = _product(trial, operands, "")
        up, off_up = _product(trial, operands, "up_")
        exact, off = numerics.of_swiglu(gate, up, off_gate, off_up)
    else:
        exact, off = _product(trial, operands, "")
        for name in {"bias", "residual"} & operands.keys():
            addend = _values(operands[name])
            exact = exact + addend
            # At most two partial sums are rounded to float32.
            off = off + 2 * u32 * (abs(exact) + abs(addend))
    return exact, numerics.of_result(exact, off, _name(trial.dtype))


def _product(
    trial: Trial, operands: dict[str, mx.array], prefix: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return y [B, M, N or K] before rounding, and its error bound."""
    import numpy as np

    lhs, rhs = (np.array(operands[f"{side}_indices"]) for side in ("lhs", "rhs"))
    x = _values(operands["x"])[lhs]
    w_hat, magnitude = (a[rhs] for a in _weights(trial, operands, prefix))
    if trial.kind != "not_transposed":
        w_hat, magnitude = w_hat.swapaxes(1, 2), magnitude.swapaxes(1, 2)
    magnitude = abs(x) @ magnitude
    # Tiles round w_hat to the type of the activations before they multiply.
    off = numerics.of_sum(magnitude, x.shape[-1], _name(trial.dtype))
    return x @ w_hat, off


def _gradient(
    trial: Trial, operands: dict[str, mx.array]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of scales and biases, and their error bounds."""
    import numpy as np

    from mlx_nibble.formats import unpack

    codes = unpack(np.array(operands["w"]), trial.bits).astype(np.float64)
    codes = codes.reshape(*codes.shape[:2], -1, trial.group_size)
    lhs, rhs = (np.array(operands[f"{side}_indices"]) for side in ("lhs", "rhs"))

    def sums(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        d = np.zeros(codes.shape)
        parts = (dy.swapaxes(1, 2) @ x[lhs]).reshape(trial.B, *codes.shape[1:])
        np.add.at(d, rhs, parts)
        return np.stack([(codes * d).sum(-1), d.sum(-1)])

    dy, x = _values(operands["dy"]), _values(operands["x"])
    exact, magnitude = sums(dy, x), sums(abs(dy), abs(x))
    off = numerics.of_sum(magnitude, trial.B * trial.M * trial.group_size)
    return exact, numerics.of_result(exact, off, "float32")


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _weights(
    trial: Trial, operands: dict[str, mx.array], prefix: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return w_hat [experts, N, K], and |scale| * code + |bias|, for error bounds."""
    import numpy as np

    from mlx_nibble.floats import CODES, SCALES
    from mlx_nibble.formats import MODES, unpack

    codes = unpack(np.array(operands[f"{prefix}w"]), trial.bits)
    if not MODES[trial.mode].stores_biases:
        bytes_of = np.array(operands[f"{prefix}scales"])
        scales = np.repeat(SCALES[trial.mode][bytes_of], trial.group_size, axis=-1)
        exact = CODES[trial.mode][codes].astype(np.float64) * scales
        return exact, abs(exact)
    scales, biases = (
        np.repeat(_values(operands[f"{prefix}{name}"]), trial.group_size, axis=-1)
        for name in ("scales", "biases")
    )
    return scales * codes + biases, abs(scales) * codes + abs(biases)


def _values(a: mx.array) -> np.ndarray:
    """Return float64 values. The CPU converts them, for the GPU may be wrong."""
    import numpy as np

    return np.array(a.astype(mx.float32, stream=mx.cpu)).astype(np.float64)


def _disagreement(y: np.ndarray, exact: np.ndarray, allowed: np.ndarray) -> str | None:
    """Return how y violates the bound; None if it does not."""
    error = abs(y - exact)
    bad = ~(error <= allowed)  # a NaN is bad too
    if not bad.any():
        return None
    worst = (error / allowed).max()
    return (
        f"wrong results: {bad.sum()} of {bad.size} elements, the worst "
        f"error is {worst:.3g} times the rounding bound"
    )


def _one_line(error: Exception) -> str:
    """Return an error's text without line breaks and without the home folder."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(os.path.expanduser("~"), "~")

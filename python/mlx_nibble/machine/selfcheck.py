"""Kernels are not trusted on a machine until they have been tried there.

A Metal kernel is compiled by the user's own system for the user's own GPU, which
nobody may have run it on. So its first use there runs a small random problem
against the dequantized product. A kernel that does not compile, or is wrong, is
switched off with a warning, and MLX's operation is used in its place. The verdict
is remembered in the user's cache folder, for the same GPU, system, mlx and
mlx-nibble.
"""

from __future__ import annotations

import atexit
import json
import platform
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_nibble import numerics
from mlx_nibble.io.atomic import write_text
from mlx_nibble.io.cache import cache_dir, cache_lock

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Machine:
    """What a verdict holds for.

    Attributes:
        gpu: Metal's architecture string, such as "applegpu_g14s".
        system: Name and version, such as "macOS 15.1".
        mlx: Version.
        mlx_nibble: Version.
    """

    gpu: str
    system: str
    mlx: str
    mlx_nibble: str

    @classmethod
    def here(cls, mlx_nibble: str) -> Machine:
        """This machine; without a GPU, ``gpu`` is empty."""
        mac = platform.mac_ver()[0]
        system = f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}"
        gpu = str(mx.device_info(mx.gpu).get("architecture", ""))
        return cls(gpu, system, mx.__version__, mlx_nibble)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Verdict:
    """How a kernel's trial went.

    Attributes:
        kernel: Its name.
        failure: Why it must not be used; None if it may be.
    """

    kernel: str
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the kernel may be used."""
        return self.failure is None


@dataclass(frozen=True)
class Trial:
    """A small problem; the fields of csrc/core/trial.h.

    With w_hat [experts, N, K], and indices lhs and rhs [B]:

    * product: y[b] = x[lhs[b]] @ w_hat[rhs[b]].T, x [rows, M, K], y [B, M, N], with
      bias [N] and residual [B, M, N] added if epilogue
    * not_transposed: y[b] = x[lhs[b]] @ w_hat[rhs[b]], x [rows, M, N], y [B, M, K]
    * swiglu: silu of one product times another, of matrices up_w
    * joint: y[b] = x[0] @ w_hat[b].T + bias[b], x [1, M, K], bias [B, N], the
      operands of each b in arrays of their own: w, w1, w2; B = experts
    * dequantize: y = w_hat [N, K]; there is no x

    Attributes:
        kind: One of these.
        sorted: rhs never falls.
        epilogue: Whether a product has a bias and a residual added.
        dtype: Of x and y.
        scale_dtype: Of scales and biases.
        symmetric: The biases are -2^(bits - 1) * scales.
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
    symmetric: bool


def check(kernel: str, ext: Any) -> Verdict | None:
    """Run a kernel's trial.

    Args:
        kernel: A name from ``ext.kernels()``.
        ext: The extension.

    Returns:
        The verdict; None if this machine's GPU never uses the kernel.
    """
    fields = ext.trial(kernel)
    if fields is None:
        return None
    return judge(kernel, Trial(**fields), partial(ext.run_trial, kernel))


def judge(
    name: str, trial: Trial, run: Callable[[dict[str, mx.array]], mx.array]
) -> Verdict:
    """Compare a computation with the dequantized product in float64.

    Args:
        name: What is tried.
        trial: The problem.
        run: Called with evaluated arrays, w [experts, N, K'], scales, biases, x,
            lhs_indices and rhs_indices among them; returns y.
    """
    operands = _operands(trial)
    exact, allowed = _reference(trial, operands)
    try:
        y = run(_bound(trial, operands))
        mx.eval(y)
    except (RuntimeError, ValueError) as error:
        return Verdict(name, _one_line(error))
    return Verdict(name, _disagreement(_values(y), exact, allowed))


def _operands(trial: Trial) -> dict[str, mx.array]:
    """By the names of csrc/core/launch_plan.h; all codes, scales of both signs."""
    import numpy as np

    rng = np.random.default_rng(0)
    operands = {}
    for prefix in ("", "up_"):
        words = (trial.experts, trial.N, trial.K * trial.bits // 32)
        groups = (trial.experts, trial.N, trial.K // trial.group_size)
        scales = rng.uniform(0.5, 1.5, groups) * rng.choice([-1, 1], groups)
        scales = mx.array((scales / 2**trial.bits).astype(np.float32))
        scales = scales.astype(trial.scale_dtype)
        zero = 2 ** (trial.bits - 1)
        if not trial.symmetric:
            zero = mx.array(rng.uniform(0, 2**trial.bits, groups).astype(np.float32))
        operands |= {
            f"{prefix}w": mx.array(rng.integers(0, 2**32, words, dtype=np.uint32)),
            f"{prefix}scales": scales,
            # A power of two times a scale is exact, as symmetry requires.
            f"{prefix}biases": (-zero * scales).astype(trial.scale_dtype),
        }
    width = trial.N if trial.kind == "not_transposed" else trial.K
    x = rng.standard_normal((trial.rows, trial.M, width)).astype(np.float32)
    rhs = rng.integers(0, trial.experts, trial.B, dtype=np.uint32)
    if trial.kind == "joint":
        rhs = np.arange(trial.B, dtype=np.uint32)
    operands |= {
        "x": mx.array(x).astype(trial.dtype),
        "lhs_indices": mx.array(rng.integers(0, trial.rows, trial.B, dtype=np.uint32)),
        "rhs_indices": mx.array(np.sort(rhs) if trial.sorted else rhs),
    }
    if trial.epilogue:
        shapes = {"bias": (trial.N,), "residual": (trial.B, trial.M, trial.N)}
        if trial.kind == "joint":
            shapes = {"bias": (trial.B, 1, trial.N)}
        for name, shape in shapes.items():
            addend = rng.standard_normal(shape).astype(np.float32)
            operands[name] = mx.array(addend).astype(trial.dtype)
    mx.eval(operands)
    return operands


def _bound(trial: Trial, operands: dict[str, mx.array]) -> dict[str, mx.array]:
    """What a kernel is given: of joint products, arrays of each."""
    if trial.kind != "joint":
        return operands
    bound = {"x": operands["x"]}
    for name in ("w", "scales", "biases", "bias"):
        for i, part in enumerate(operands[name]):
            # A slice itself would begin where kernels cannot read it.
            bound[f"{name}{i or ''}"] = part + mx.zeros_like(part)
    mx.eval(bound)
    return bound


def _reference(
    trial: Trial, operands: dict[str, mx.array]
) -> tuple[np.ndarray, np.ndarray]:
    """The result in float64, and how far each element may be off."""
    u32 = numerics.UNIT_ROUNDOFF["float32"]
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
            # At most two roundings of partial sums, in float32.
            off = off + 2 * u32 * (abs(exact) + abs(addend))
    return exact, numerics.of_result(exact, off, _name(trial.dtype))


def _product(
    trial: Trial, operands: dict[str, mx.array], prefix: str
) -> tuple[np.ndarray, np.ndarray]:
    """y [B, M, N or K] before it is rounded, and how far it may be off."""
    import numpy as np

    lhs, rhs = (np.array(operands[f"{side}_indices"]) for side in ("lhs", "rhs"))
    x = _values(operands["x"])[lhs]
    w_hat, magnitude = (a[rhs] for a in _weights(trial, operands, prefix))
    if trial.kind != "not_transposed":
        w_hat, magnitude = w_hat.swapaxes(1, 2), magnitude.swapaxes(1, 2)
    magnitude = abs(x) @ magnitude
    # Tiles round w_hat to the type of the activations first.
    off = numerics.of_sum(magnitude, x.shape[-1], _name(trial.dtype))
    return x @ w_hat, off


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _weights(
    trial: Trial, operands: dict[str, mx.array], prefix: str
) -> tuple[np.ndarray, np.ndarray]:
    """w_hat [experts, N, K], and |scale| * code + |bias|, which errors scale with."""
    import numpy as np

    from mlx_nibble.formats import unpack

    codes = unpack(np.array(operands[f"{prefix}w"]), trial.bits)
    scales, biases = (
        np.repeat(_values(operands[f"{prefix}{name}"]), trial.group_size, axis=-1)
        for name in ("scales", "biases")
    )
    return scales * codes + biases, abs(scales) * codes + abs(biases)


def _values(a: mx.array) -> np.ndarray:
    """As float64; on the CPU, whatever is wrong with the GPU."""
    import numpy as np

    return np.array(a.astype(mx.float32, stream=mx.cpu)).astype(np.float64)


def _disagreement(y: np.ndarray, exact: np.ndarray, allowed: np.ndarray) -> str | None:
    error = abs(y - exact)
    bad = ~(error <= allowed)  # a NaN is bad too
    if not bad.any():
        return None
    worst = (error / allowed).max()
    return (
        f"wrong results: {bad.sum()} of {bad.size} elements, the worst by "
        f"{worst:.3g} times what rounding explains"
    )


def _one_line(error: Exception) -> str:
    """What an error says, without line breaks and without the user's name."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(str(Path.home()), "~")


class Verdicts:
    """The verdicts of one machine, remembered in the user's cache folder."""

    def __init__(self, machine: Machine, ext: Any) -> None:
        """Nothing is read or tried yet."""
        self._machine = machine
        self._ext = ext
        self._known: dict[str, Verdict] | None = None

    @property
    def path(self) -> Path:
        """The file; one for each machine in the sense of :class:`Machine`."""
        name = "_".join(asdict(self._machine).values())
        return (
            cache_dir() / "self-check" / f"{re.sub('[^A-Za-z0-9.]+', '-', name)}.json"
        )

    def __call__(self, kernel: str) -> bool:
        """Whether a kernel may be used; tries it if that is not known."""
        if self._known is None:
            self._known = self._load()
        verdict = self._known.get(kernel)
        if verdict is None:
            verdict = check(kernel, self._ext) or Verdict(kernel)
            self.remember([verdict])
        if not verdict.ok:
            warnings.warn(
                f"mlx-nibble does not use its kernel {kernel} on this machine, MLX's "
                f"own operation takes its place: {verdict.failure}. `nibble doctor` "
                "tries it again, `nibble doctor --report` writes a report for us.",
                RuntimeWarning,
                stacklevel=2,
            )
        return verdict.ok

    def remember(self, verdicts: Iterable[Verdict]) -> None:
        """Add to what is known, here and in the cache."""
        new = {verdict.kernel: verdict for verdict in verdicts}
        try:
            with cache_lock("self-check"):
                self._known = self._load() | (self._known or {}) | new
                self._save(self._known)
        except OSError:
            # Without a cache, every process tries for itself.
            self._known = (self._known or {}) | new

    def _load(self) -> dict[str, Verdict]:
        try:
            stored = json.loads(self.path.read_text())
            return {
                kernel: Verdict(kernel, None if failure is None else str(failure))
                for kernel, failure in stored["failures"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # none yet, or damaged: then it is made anew

    def _save(self, verdicts: dict[str, Verdict]) -> None:
        stored = {
            "machine": asdict(self._machine),
            # By kernel; null for one that may be used.
            "failures": {k: v.failure for k, v in sorted(verdicts.items())},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(stored, indent=1))


def install(ext: Any, mlx_nibble: str) -> None:
    """Have every kernel tried before its first use; nothing is done yet."""
    if not mx.metal.is_available():
        return
    ext.set_judge(Verdicts(Machine.here(mlx_nibble), ext))
    # The extension outlives the interpreter and must not hold on to it.
    atexit.register(ext.set_judge, None)

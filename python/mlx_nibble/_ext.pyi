"""The compiled half of mlx_nibble."""

from collections.abc import Callable, Mapping, Sequence

import mlx.core


def mlx_version() -> str:
    """Return the mlx version that this extension was compiled against."""

def quantized_matmul(arg0: mlx.core.array, arg1: mlx.core.array, scales: mlx.core.array, biases: mlx.core.array | None = None, transpose: bool = True, group_size: int | None = None, bits: int | None = None, mode: str = 'affine', *, bias: mlx.core.array | None = None, residual: mlx.core.array | None = None, int8_activations: bool = False, batch_invariant: bool = False, symmetric: bool = False, half_tiles: bool = False, tuning: int = 0, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """See mlx_nibble.ops.quantized_matmul."""

def gather_qmm(arg0: mlx.core.array, arg1: mlx.core.array, scales: mlx.core.array, biases: mlx.core.array | None = None, lhs_indices: mlx.core.array | None = None, rhs_indices: mlx.core.array | None = None, transpose: bool = True, group_size: int | None = None, bits: int | None = None, mode: str = 'affine', global_scale: mlx.core.array | None = None, *, sorted_indices: bool = False, int8_activations: bool = False, batch_invariant: bool = False, symmetric: bool = False, tuning: int = 0, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """See mlx_nibble.ops.gather_qmm."""

def swiglu_matmul(arg0: mlx.core.array, gate: tuple[mlx.core.array, mlx.core.array, mlx.core.array | None], up: tuple[mlx.core.array, mlx.core.array, mlx.core.array | None], group_size: int | None = None, bits: int | None = None, mode: str = 'affine', *, int8_activations: bool = False, batch_invariant: bool = False, symmetric: bool = False, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """See mlx_nibble.ops.swiglu."""

def gather_swiglu(arg0: mlx.core.array, gate: tuple[mlx.core.array, mlx.core.array, mlx.core.array | None], up: tuple[mlx.core.array, mlx.core.array, mlx.core.array | None], lhs_indices: mlx.core.array | None = None, rhs_indices: mlx.core.array | None = None, group_size: int | None = None, bits: int | None = None, mode: str = 'affine', *, sorted_indices: bool = False, int8_activations: bool = False, batch_invariant: bool = False, symmetric: bool = False, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """See mlx_nibble.ops.gather_swiglu."""

def dequantize(arg0: mlx.core.array, scales: mlx.core.array, biases: mlx.core.array | None = None, group_size: int | None = None, bits: int | None = None, mode: str = 'affine', global_scale: mlx.core.array | None = None, dtype: mlx.core.Dtype | None = None, *, tuning: int = 0, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """See mlx_nibble.ops.dequantize."""

def rms_norm(arg0: mlx.core.array, weight: mlx.core.array | None, eps: float, *, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """See mlx_nibble.fast.rms_norm."""

def logsumexp(arg0: mlx.core.array, axes: Sequence[int] | None, keepdims: bool, *, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """See mlx_nibble.fast.logsumexp."""

def rope(arg0: mlx.core.array, dims: int, *, traditional: bool, base: float | None, scale: float, offset: int | mlx.core.array, freqs: mlx.core.array | None = None, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """See mlx_nibble.fast.rope."""

def scaled_dot_product_attention(arg0: mlx.core.array, arg1: mlx.core.array, arg2: mlx.core.array, /, *, scale: float, mask: str | mlx.core.array | None = None, sinks: mlx.core.array | None = None, force_fused: bool = False, batch_invariant: bool = False, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """See mlx_nibble.fast.scaled_dot_product_attention."""

def swiglu(arg0: mlx.core.array, arg1: mlx.core.array, /, *, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """See mlx_nibble.fast.swiglu."""

def gated_products(arg0: mlx.core.array, arg1: mlx.core.array, /, *, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array | None:
    """
    Compute silu(gate) * up and the two products that gate and up are waiting for in one node. Returns None if no kernel supports that.
    """

def remember_symmetric(scales: mlx.core.array, biases: mlx.core.array, bits: int) -> int:
    """
    Remember that these biases are -2**(bits - 1) * scales, and keep both arrays until forget_symmetric() gets the token that this returns. mlx_nibble.acceleration.symmetric calls it.
    """

def forget_symmetric(token: int) -> None:
    """Forget the pair of this token of remember_symmetric()."""

def remember_repack(w: mlx.core.array, scales: mlx.core.array, biases: mlx.core.array, bits: int, group_size: int) -> int:
    """
    Have products copy this matrix into the CPU backend's own layout, and keep the arrays until forget_repack() gets the token that this returns; 0 if the backend has no other layout for the format. mlx_nibble.acceleration.repack calls it.
    """

def forget_repack(token: int) -> None:
    """Forget the matrix of this token of remember_repack()."""

def repack_bytes(token: int) -> tuple[int, int]:
    """
    The bytes that the copy of this token needs, and those allocated so far; (0, 0) after forget_repack().
    """

def supports(mode: str, bits: int, group_size: int) -> bool:
    """Tell whether our kernels support a format, on any device."""

def supported_bits() -> list[int]:
    """Return the code widths that our kernels support."""

def supported_group_sizes() -> list[int]:
    """Return the group sizes that our kernels support."""

def cpu_isa() -> str:
    """The instruction set that the CPU backend uses."""

def cpu_threads() -> int:
    """The number of threads that the CPU backend uses."""

def cpu_multiply(times: int) -> int:
    """
    Run `times` rounds of multiplications on all threads of the CPU backend. Returns their number of floating-point operations.
    """

def kernels() -> list[str]:
    """The names of all Metal kernels."""

def trial(kernel: str) -> dict | None:
    """
    The fields of this kernel's trial.Trial on this machine's GPU; None if the planner never uses the kernel there.
    """

def run_trial(kernel: str, operands: Mapping[str, mlx.core.array], *, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """
    Run the kernel's trial. `operands` maps names of operands to arrays. Returns y.
    """

def trusted(kernels: Sequence[str]) -> bool:
    """
    Tell whether all of these kernels may be used; try those that nobody has asked for.
    """

def compile_kernels(kernels: Sequence[str]) -> None:
    """Compile these kernels in one library, for their trials."""

def set_fences(fences: bool) -> None:
    """
    Compile kernels with or without barriers between the loads of fragments and their products, from now on.
    """

def set_gpu_facts(find: Callable | None) -> None:
    """
    Ask find() -> (cores, neural accelerators, TF32) before the first plan for a GPU; 0 cores: not known.
    """

def set_judge(judge: Callable | None) -> None:
    """Ask judge(kernel) -> bool before the first use of each kernel."""

def row_classes(*, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> list[int]:
    """The largest number of rows of each class that shares a choice."""

def add_tuning(choices: Sequence[tuple[tuple[int, int, int, mlx.core.Dtype, mlx.core.Dtype, int, int, bool, int, bool], bool, str]], complete: bool = False, *, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> int:
    """
    Keep a table of ((rows, N, K, dtype, scale_dtype, bits, group_size, symmetric, experts, sorted), int8_activations, candidate). A complete one leaves a GPU's other products to MLX. Returns its number, the argument `tuning` of the operations.
    """

def replace_tuning(number: int, choices: Sequence[tuple[tuple[int, int, int, mlx.core.Dtype, mlx.core.Dtype, int, int, bool, int, bool], bool, str]]) -> None:
    """Give a table of add_tuning() these choices."""

def kernels_of(shape: tuple[int, int, int, mlx.core.Dtype, mlx.core.Dtype, int, int, bool, int, bool], choice: str = '') -> list[str]:
    """
    The names of the kernels that compute a product on a GPU, as a table with this choice has it.
    """

def joining_kernels(shape: tuple[int, int, int, mlx.core.Dtype, mlx.core.Dtype, int, int, bool, int, bool]) -> list[str]:
    """
    The names of the kernels that compute a product together with others on a GPU.
    """

def candidates(shape: tuple[int, int, int, mlx.core.Dtype, mlx.core.Dtype, int, int, bool, int, bool], int8_activations: bool = False, *, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> list[str]:
    """
    The names of all candidates for x @ w_hat.T, the planner's own choice first; none if only MLX computes it.
    """

def chosen(shape: tuple[int, int, int, mlx.core.Dtype, mlx.core.Dtype, int, int, bool, int, bool], int8_activations: bool = False, tuning: int = 0, *, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> str:
    """The name of the candidate that runs; 'mlx' if none does."""

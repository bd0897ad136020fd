"""Runs a peer's 4-bit product in a process of its own, for against_cpu_libraries.

    python peer_product.py NAME THREADS

Answers lines of JSON. A case is prepared and answered with its name. A number runs the
case that many times, each on the next weights, and is answered with the seconds of one.
Imports nothing of ours, and a peer only when it is named.
"""

from __future__ import annotations

import ctypes
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def random_parts(case: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes [N, K / group, group], zero points and scales [N, K / group].

    Every copy of a matrix holds the same values: they do not affect the time.
    """
    return _random_parts(case["N"], case["K"], case["group_size"])


@functools.lru_cache(1)
def _random_parts(N: int, K: int, group_size: int) -> tuple:
    rng = np.random.default_rng(0)
    shape = (N, K // group_size)
    codes = rng.integers(0, 16, (*shape, group_size), dtype=np.uint8)
    zeros = rng.integers(0, 16, shape, dtype=np.uint8)
    return codes, zeros, rng.uniform(0.01, 0.02, shape).astype(np.float32)


def nibbles(codes: np.ndarray) -> np.ndarray:
    """Pack two codes into a byte along the last axis, the first in the low half."""
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return codes[..., ::2] | codes[..., 1::2] << 4


@functools.cache
def _onnxruntime_threads(threads: int) -> None:
    import onnxruntime as ort

    ort.set_global_thread_pool_sizes(threads, 1)


def onnxruntime(case: dict, threads: int) -> Callable[[], None]:
    """Return MatMulNBits; accuracy_level 4 rounds activations to 8 bits."""
    import onnx
    import onnxruntime as ort

    _onnxruntime_threads(threads)
    codes, zeros, scales = random_parts(case)
    N, K = case["N"], case["K"]
    level = 4 if case["int8"] else 1
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["x", "w", "scales", "zeros"],
        ["y"],
        domain="com.microsoft",
        K=K,
        N=N,
        bits=4,
        block_size=case["group_size"],
        accuracy_level=level,
    )
    real = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("x", real, [case["rows"], K])],
        [onnx.helper.make_tensor_value_info("y", real, [case["rows"], N])],
        [
            onnx.numpy_helper.from_array(nibbles(codes), "w"),
            onnx.numpy_helper.from_array(scales.reshape(-1), "scales"),
            onnx.numpy_helper.from_array(nibbles(zeros).reshape(-1), "zeros"),
        ],
    )
    domains = [("", 17), ("com.microsoft", 1)]
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid(*d) for d in domains]
    )
    model.ir_version = 9
    # The threads of all sessions would otherwise wait for work by spinning.
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(1).standard_normal((case["rows"], K), np.float32)
    return lambda: session.run(None, {"x": x})


def openvino(case: dict, threads: int) -> Callable[[], None]:
    """Return a product of int4 weights as nncf writes them; it rounds x by group."""
    import openvino as ov
    from openvino import opset13 as op

    codes, zeros, scales = random_parts(case)
    N, K = case["N"], case["K"]
    groups = (N, K // case["group_size"], 1)
    # Tensors share numpy's memory but do not keep it alive.
    x_values = np.random.default_rng(1).standard_normal((case["rows"], K), np.float32)
    kept = [x_values]

    def int4(values: np.ndarray, shape: tuple[int, ...]) -> ov.Node:
        packed = nibbles(values.reshape(-1, 2)).reshape(-1)
        kept.append(packed)
        return op.constant(ov.Tensor(packed, ov.Shape(shape), ov.Type.u4))

    weight = op.convert(int4(codes, codes.shape), np.float16)
    weight = op.subtract(weight, op.convert(int4(zeros, groups), np.float16))
    weight = op.multiply(weight, op.constant(scales.reshape(groups).astype(np.float16)))
    weight = op.convert(op.reshape(weight, [N, K], False), np.float32)
    x = op.parameter([case["rows"], K], np.float32)
    product = op.matmul(x, weight, False, True)
    size = str(case["group_size"]) if case["int8"] else "0"
    core = ov.Core()
    compiled = core.compile_model(
        ov.Model([product], [x]),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": str(threads),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": size,
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(x_values))
    alive = (core, compiled, kept)

    def run(_alive: tuple = alive) -> None:
        request.infer()

    return run


def torch(case: dict, threads: int) -> Callable[[], None]:
    """Return _weight_int4pack_mm_for_cpu in bfloat16, its fast path."""
    import torch

    torch.set_num_threads(threads)
    codes, _, scales = random_parts(case)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        torch.from_numpy(codes.reshape(case["N"], case["K"]).astype(np.int32)), 1
    )
    both = torch.from_numpy(np.stack([scales.T, scales.T], -1)).to(torch.bfloat16)
    x = torch.randn(case["rows"], case["K"], dtype=torch.bfloat16)
    both = both.contiguous()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(
        x, packed, case["group_size"], both
    )


class Ggml:
    """llama.cpp's products, through its shared libraries' C functions."""

    Q4_0, Q4_1, F32 = 2, 3, 0

    def __init__(self, threads: int):
        import llama_cpp

        folder = Path(llama_cpp.__file__).parent / "lib"
        load = [folder / f"libggml{part}.so" for part in ("-base", "-cpu", "")]
        self._libraries = [ctypes.CDLL(str(p), ctypes.RTLD_GLOBAL) for p in load]
        self.backend = self("backend_cpu_init")
        self("backend_cpu_set_n_threads", self.backend, ctypes.c_int(threads))

    def __call__(self, name: str, *args: object, returns: type = ctypes.c_void_p):
        for library in self._libraries:
            function = getattr(library, f"ggml_{name}", None)
            if function is not None:
                function.restype = returns
                wrapped = [ctypes.c_void_p(a) if type(a) is int else a for a in args]
                return function(*wrapped)
        raise AttributeError(f"llama.cpp has no ggml_{name}")

    def context(self) -> int:
        """Return a context for descriptions of tensors and a graph, not for data."""

        class Parameters(ctypes.Structure):
            _fields_ = [
                ("bytes", ctypes.c_size_t),
                ("buffer", ctypes.c_void_p),
                ("no_alloc", ctypes.c_bool),
            ]

        return self("init", Parameters(1 << 20, None, True))

    def tensor(self, context: int, kind: int, width: int, rows: int) -> int:
        sizes = (ctypes.c_int64(width), ctypes.c_int64(rows))
        return self("new_tensor_2d", context, ctypes.c_int(kind), *sizes)

    def repacking(self) -> int | None:
        """Return the type of buffer that llama.cpp repacks for this processor."""
        device = self("backend_get_device", self.backend)
        registry = self("backend_dev_backend_reg", device)
        name = ctypes.c_char_p(b"ggml_backend_dev_get_extra_bufts")
        address = self("backend_reg_get_proc_address", registry, name)
        if not address:
            return None
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
        found = kinds(address)(device)
        for kind in found:
            if not kind:
                return None
            text = self("backend_buft_name", kind, returns=ctypes.c_char_p)
            if text == b"CPU_REPACK":
                return kind
        return None


def llama(case: dict, threads: int, kind: int) -> Callable[[], None]:
    """Return ggml_mul_mat, which rounds activations to 8 bits; blocks of 32 codes."""
    ggml = _ggml(threads)
    N, K = case["N"], case["K"]
    weights = ggml.context()
    w = ggml.tensor(weights, kind, K, N)
    # Q4_0 is repacked where llama.cpp does so when it loads a model.
    repacking = ggml.repacking() if kind == Ggml.Q4_0 else None
    where = repacking or ggml("backend_get_default_buffer_type", ggml.backend)
    buffer = ggml("backend_alloc_ctx_tensors_from_buft", weights, where)
    data = _ggml_codes(threads, kind, N, K)
    ggml("backend_tensor_set", w, data, ctypes.c_size_t(0), ctypes.c_size_t(len(data)))
    work = ggml.context()
    x = ggml.tensor(work, Ggml.F32, K, case["rows"])
    product = ggml("mul_mat", work, w, x)
    graph = ggml("new_graph", work)
    ggml("build_forward_expand", graph, product)
    ggml("backend_alloc_ctx_tensors", work, ggml.backend)
    values = np.random.default_rng(1).standard_normal((case["rows"], K), np.float32)
    size = ctypes.c_size_t(values.nbytes)
    ggml("backend_tensor_set", x, values.ctypes.data, ctypes.c_size_t(0), size)
    kept = (weights, buffer, work)

    def run(_kept: tuple = kept) -> None:
        ggml("backend_graph_compute", ggml.backend, graph, returns=ctypes.c_int)

    return run


@functools.cache
def _ggml(threads: int) -> Ggml:
    return Ggml(threads)


@functools.cache
def _ggml_codes(threads: int, kind: int, N: int, K: int) -> bytes:
    """Return a matrix as llama.cpp quantizes it."""
    ggml = _ggml(threads)
    values = np.random.default_rng(0).standard_normal((N, K), np.float32)
    width = ctypes.c_int64(K)
    row = ggml("row_size", ctypes.c_int(kind), width, returns=ctypes.c_size_t)
    out = ctypes.create_string_buffer(row * N)
    ggml(
        "quantize_chunk",
        ctypes.c_int(kind),
        values.ctypes.data,
        out,
        ctypes.c_int64(0),
        ctypes.c_int64(N),
        width,
        None,
        returns=ctypes.c_size_t,
    )
    return out.raw


MAKERS: dict[str, Callable[[dict, int], Callable[[], None]]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torch": torch,
    "llama.cpp Q4_0": functools.partial(llama, kind=Ggml.Q4_0),
    "llama.cpp Q4_1": functools.partial(llama, kind=Ggml.Q4_1),
}


def main() -> None:
    name, threads = sys.argv[1], int(sys.argv[2])
    calls: list[Callable[[], None]] = []
    turn = 0
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, dict):
            calls = []  # first frees the last case's memory
            make = MAKERS[name]
            calls = [make(request, threads) for _ in range(request["copies"])]
            turn = 0
            print(json.dumps(name), flush=True)
            continue
        before = time.perf_counter()
        for _ in range(request):
            calls[turn % len(calls)]()
            turn += 1
        print(json.dumps((time.perf_counter() - before) / request), flush=True)


if __name__ == "__main__":
    main()

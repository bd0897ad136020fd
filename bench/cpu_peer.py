"""A peer's 4-bit product as a process of the peer's own environment.

    python cpu_peer.py NAME THREADS

Answers lines of JSON: a case is prepared and answered with its name, "run" runs it
once on the next weights and is answered with the seconds that took. Imports nothing
of ours, and a peer only when it is named.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np


def random_parts(case: dict, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [N, K / group, group], zero points and scales [N, K / group]."""
    rng = np.random.default_rng(seed)
    shape = (case["N"], case["K"] // case["group_size"])
    codes = rng.integers(0, 16, (*shape, case["group_size"]), dtype=np.uint8)
    zeros = rng.integers(0, 16, shape, dtype=np.uint8)
    return codes, zeros, rng.uniform(0.01, 0.02, shape).astype(np.float32)


def nibbles(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte along the last axis, the first in the low half."""
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return codes[..., ::2] | codes[..., 1::2] << 4


def onnxruntime(case: dict, seed: int, threads: int) -> Callable[[], None]:
    """MatMulNBits; accuracy_level 4 rounds activations to 8 bits."""
    import onnx
    import onnxruntime as ort

    codes, zeros, scales = random_parts(case, seed)
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
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(1).standard_normal((case["rows"], K), np.float32)
    return lambda: session.run(None, {"x": x})


def openvino(case: dict, seed: int, threads: int) -> Callable[[], None]:
    """int4 weights as nncf writes them; 8-bit activations by group, its default."""
    import openvino as ov
    from openvino import opset13 as op

    codes, zeros, scales = random_parts(case, seed)
    N, K = case["N"], case["K"]
    groups = (N, K // case["group_size"], 1)
    # Tensors look into numpy's memory and do not hold on to it.
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


def torch(case: dict, seed: int, threads: int) -> Callable[[], None]:
    """_weight_int4pack_mm_for_cpu in bfloat16, its fast path."""
    import torch

    torch.set_num_threads(threads)
    codes, _, scales = random_parts(case, seed)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        torch.from_numpy(codes.reshape(case["N"], case["K"]).astype(np.int32)), 1
    )
    both = torch.from_numpy(np.stack([scales.T, scales.T], -1)).to(torch.bfloat16)
    x = torch.randn(case["rows"], case["K"], dtype=torch.bfloat16)
    both = both.contiguous()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(
        x, packed, case["group_size"], both
    )


def main() -> None:
    name, threads = sys.argv[1], int(sys.argv[2])
    make = {"onnxruntime": onnxruntime, "openvino": openvino, "torch": torch}[name]
    calls: list[Callable[[], None]] = []
    turn = 0
    for line in sys.stdin:
        request = json.loads(line)
        if request != "run":
            calls = [make(request, seed, threads) for seed in range(request["copies"])]
            turn = 0
            print(json.dumps(name), flush=True)
            continue
        before = time.perf_counter()
        calls[turn % len(calls)]()
        print(json.dumps(time.perf_counter() - before), flush=True)
        turn += 1


if __name__ == "__main__":
    main()

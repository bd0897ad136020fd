"""Small matrices that other tools' own code packed and dequantized.

`python -m tests.support.packed_by_tools FOLDER [TOOL ...]` writes a file for each tool
that is installed. The committed ones are of the versions in their names. Packages that
their `__init__` ties to other versions of transformers are imported without it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

N, K = 32, 128


@dataclass(frozen=True)
class Case:
    """A packed matrix.

    Attributes:
        settings: The `quantization_config`.
        parts: Its tensors.
        digest: The digest of the values that the tool's code dequantizes to.
    """

    settings: dict[str, Any]
    parts: dict[str, np.ndarray]
    digest: str


def digest_of(weights: np.ndarray) -> str:
    """Return the digest of float32 values; zeros have no sign."""
    values = weights.astype(np.float32) + np.float32(0)
    return hashlib.sha256(values.tobytes()).hexdigest()


def _case(settings: dict[str, Any], parts: dict[str, Any], weights: np.ndarray) -> Case:
    return Case(settings, parts, digest_of(weights))


def _bare(*names: str) -> None:
    """Let submodules of packages be imported without the packages' own code."""
    for name in names:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        module = types.ModuleType(name)
        module.__path__ = list(spec.submodule_search_locations or ())
        module.__spec__ = spec
        sys.modules[name] = module


def _matrix(rng, bits: int, groups: int, least: int) -> tuple[np.ndarray, ...]:
    """Return codes, float16 scales and zeros from `least` on."""
    codes = rng.integers(0, 1 << bits, (N, K))
    scales = rng.uniform(0.01, 0.02, (N, groups)).astype(np.float16)
    zeros = np.arange(N * groups) % ((1 << bits) - least) + least
    return codes, scales, rng.permuted(zeros.reshape(N, groups), axis=1)


def _linear(codes, scales, zeros, g_idx):
    """Return a layer whose weights are exactly on the grid."""
    import torch

    wide = scales.astype(np.float64)[:, g_idx] * (codes - zeros[:, g_idx])
    linear = torch.nn.Linear(K, N, bias=False)
    linear.weight.data = torch.from_numpy(wide.astype(np.float32))
    return linear


def _arrays(module, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: getattr(module, name).detach().numpy() for name in names}


_GPTQ = ("qweight", "qzeros", "scales", "g_idx")


def auto_gptq(rng) -> Iterator[Case]:
    """Pack with AutoGPTQ (format v1). Zeros of 0 spoil its words: none are used."""
    import torch

    _bare("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear")
    module = importlib.import_module("auto_gptq.nn_modules.qlinear.qlinear_cuda")
    for bits in (2, 3, 4, 8):
        for size, order in ((32, False), (64, True), (-1, False)):
            inputs = np.arange(K) // (K if size == -1 else size)
            g_idx = rng.permutation(inputs) if order else inputs
            codes, scales, zeros = _matrix(rng, bits, inputs[-1] + 1, 1)
            layer = module.QuantLinear(
                bits, size, K, N, False, weight_dtype=torch.float32
            )
            layer.pack(
                _linear(codes, scales, zeros, g_idx),
                torch.from_numpy(scales.astype(np.float32)),
                torch.from_numpy(zeros.astype(np.float32)),
                torch.from_numpy(g_idx.astype(np.int32)),
            )
            weights = layer(torch.eye(K)).T.numpy()
            parts = _arrays(layer, _GPTQ) | {"scales": layer.scales.half().numpy()}
            settings = {"quant_method": "gptq", "bits": bits, "group_size": size}
            yield _case({**settings, "desc_act": order}, parts, weights)


def gptqmodel(rng) -> Iterator[Case]:
    """Pack with GPTQModel: formats gptq, gptq_v2 and gptq_p, all zeros."""
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import FORMAT, QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    kinds = [(form, bits) for form in ("gptq", "gptq_v2") for bits in (2, 3, 4, 8)]
    kinds += [("gptq_p", bits) for bits in (3, 5, 6, 7)]
    for form, bits in kinds:
        for size, order in ((32, False), (64, True), (-1, False)):
            inputs = np.arange(K) // (K if size == -1 else size)
            g_idx = rng.permutation(inputs) if order else inputs
            codes, scales, zeros = _matrix(rng, bits, inputs[-1] + 1, 0)
            layer = TorchLinear(
                bits=bits,
                group_size=size,
                sym=False,
                desc_act=order,
                in_features=K,
                out_features=N,
                bias=False,
                pack_dtype=torch.int32,
                register_buffers=True,
                format=FORMAT(form),
            )
            layer.pack_original(
                _linear(codes, scales, zeros, g_idx),
                torch.from_numpy(scales.astype(np.float32)),
                torch.from_numpy(zeros.astype(np.int32)),
                torch.from_numpy(g_idx.astype(np.int32)),
            )
            half = layer.scales
            layer.scales = half.float()
            weights = layer.dequantize_weight().T.float().numpy().copy()
            layer.scales = half
            if form == "gptq":
                config = QuantizeConfig(bits=bits, group_size=size)
                convert_gptq_v2_to_v1_format_module(layer, config)
            settings = {"quant_method": "gptq", "bits": bits, "group_size": size}
            settings |= {"desc_act": order, "checkpoint_format": form}
            yield _case(settings, _arrays(layer, _GPTQ), weights)


def autoawq(rng) -> Iterator[Case]:
    """Pack with AutoAWQ: gemm, gemv and gemv_fast. Only gemm dequantizes on a CPU."""
    import torch

    _bare("awq", "awq.modules", "awq.modules.linear", "awq.utils")
    unpack = importlib.import_module("awq.utils.packing_utils").dequantize_gemm
    names = ("qweight", "qzeros", "scales")
    for form, of in (
        ("gemm", "gemm.WQLinear_GEMM"),
        ("gemv", "gemv.WQLinear_GEMV"),
        ("gemv_fast", "gemv_fast.WQLinear_GEMVFast"),
    ):
        file, _, name = of.partition(".")
        layer_class = getattr(
            importlib.import_module(f"awq.modules.linear.{file}"), name
        )
        for size in (32, 64, 128):
            g_idx = np.arange(K) // size
            codes, scales, zeros = _matrix(rng, 4, K // size, 0)
            s, z = torch.from_numpy(scales), torch.from_numpy(zeros)
            if form == "gemm":
                s, z = s.T.contiguous(), z.T.contiguous()
            linear = _linear(codes, scales, zeros, g_idx)
            layer = layer_class.from_linear(linear, 4, size, scales=s, zeros=z)
            parts = _arrays(layer, names)
            weights = linear.weight.detach().numpy()
            if form == "gemm":
                wide = layer.scales.float()
                weights = unpack(layer.qweight, layer.qzeros, wide, 4, size).T.numpy()
            elif form == "gemv_fast":  # it stores rounded products of scale and zero
                biases = parts["qzeros"].T[:, : K // size].astype(np.float32)
                weights = scales.astype(np.float32)[:, g_idx] * codes + biases[:, g_idx]
            settings = {"quant_method": "awq", "bits": 4, "group_size": size}
            yield _case({**settings, "version": form}, parts, weights)


def auto_round(rng) -> Iterator[Case]:
    """Pack with AutoRound: its own packing, GPTQ's and AWQ's.

    GPTQ's stores zeros minus 1. Zeros of 0 spoil its words: none are used.
    """
    import torch

    _bare("auto_round", "auto_round.utils", "auto_round.export")
    _bare("auto_round.export.export_to_awq", "auto_round_extension")
    _bare("auto_round_extension.torch")
    sys.modules["auto_round.utils"].get_packing_device = lambda device: "cpu"
    own = importlib.import_module("auto_round_extension.torch.qlinear_torch")
    minus_one = importlib.import_module("auto_round_extension.torch.qlinear_torch_zp")
    awq = importlib.import_module("auto_round.export.export_to_awq.utils")
    kinds = [("auto_round", own, bits, 0) for bits in range(2, 9)]
    kinds += [("auto_round:auto_gptq", minus_one, bits, 1) for bits in range(2, 9)]
    for form, module, bits, least in kinds:
        for size in (32, 64, -1):
            g_idx = np.arange(K) // (K if size == -1 else size)
            codes, scales, zeros = _matrix(rng, bits, g_idx[-1] + 1, least)
            layer = module.QuantLinear(bits, size, K, N, False)
            layer.device = "cpu"
            layer.pack(
                _linear(codes, scales, zeros, g_idx),
                torch.from_numpy(scales.astype(np.float32)),
                torch.from_numpy(zeros.astype(np.float32)),
            )
            parts = _arrays(layer, _GPTQ[:3])
            layer.scales = layer.scales.float()
            weights = layer(torch.eye(K)).T.numpy()
            settings = {"quant_method": "auto-round", "packing_format": form}
            yield _case({**settings, "bits": bits, "group_size": size}, parts, weights)
    for size in (32, 64):
        g_idx = np.arange(K) // size
        codes, scales, zeros = _matrix(rng, 4, K // size, 0)
        s, z = (torch.from_numpy(a.T.copy()) for a in (scales, zeros))
        linear = _linear(codes, scales, zeros, g_idx)
        layer = awq.WQLinear_GEMM.from_linear(linear, 4, size, scales=s, zeros=z)
        wide = layer.scales.float()
        weights = awq.dequantize_gemm(layer.qweight, layer.qzeros, wide, 4, size)
        form = "auto_round:auto_awq"
        settings = {"quant_method": "auto-round", "packing_format": form}
        parts = _arrays(layer, _GPTQ[:3])
        yield _case(
            {**settings, "bits": 4, "group_size": size}, parts, weights.T.numpy()
        )


def compressed_tensors(rng) -> Iterator[Case]:
    """Pack with compressed-tensors: pack-quantized and int-quantized."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    kinds = [("pack-quantized", bits) for bits in (2, 3, 4, 5, 6, 7, 8)]
    kinds += [("int-quantized", 8), ("naive-quantized", 4)]
    for form, bits in kinds:
        for size, symmetric in ((32, True), (64, False), (-1, True), (-1, False)):
            g_idx = np.arange(K) // (K if size == -1 else size)
            codes, scales, zeros = _matrix(rng, bits, g_idx[-1] + 1, 0)
            half = 1 << (bits - 1)
            if symmetric:
                zeros = np.full(zeros.shape, half)
            args = {
                "num_bits": bits,
                "type": "int",
                "symmetric": symmetric,
                "strategy": "channel" if size == -1 else "group",
                "group_size": None if size == -1 else size,
            }
            own = QuantizationArgs(**args)
            scheme = QuantizationScheme(targets=["Linear"], weights=own)
            state = {
                "weight": _linear(codes, scales, zeros, g_idx).weight.detach(),
                "weight_scale": torch.from_numpy(scales.astype(np.float32)),
                "weight_zero_point": torch.from_numpy((zeros - half).astype(np.int8)),
            }
            tool = BaseCompressor.get_value_from_registry(form)
            packed = tool.compress(state, scheme)
            weights = tool.decompress(packed, scheme)["weight"].float().numpy()
            parts = {k: v.numpy() for k, v in packed.items()}
            parts["weight_scale"] = scales
            settings = {"quant_method": "compressed-tensors", "format": form}
            group = {"targets": ["Linear"], "weights": args}
            yield _case({**settings, "config_groups": {"g": group}}, parts, weights)


def compressed_tensors_floats(rng) -> Iterator[Case]:
    """Pack with compressed-tensors: its formats of floats of 4 and 8 bits.

    Global scales are powers of two, so that the tool's own products are exact.
    """
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
    fp4 = {**fp8, "num_bits": 4}
    block = {**fp8, "strategy": "block", "block_structure": [16, 64]}
    kinds = [
        ("float-quantized", {**fp8, "strategy": "tensor"}, (1, 1)),
        ("float-quantized", {**fp8, "strategy": "channel"}, (N, 1)),
        ("float-quantized", {**fp8, "strategy": "group", "group_size": 32}, (N, 4)),
        ("float-quantized", block, (N // 16, K // 64)),
        ("naive-quantized", {**fp8, "strategy": "channel"}, (N, 1)),
        ("mxfp4-pack-quantized", {**fp4, "strategy": "group", "group_size": 32}, None),
        (
            "nvfp4-pack-quantized",
            {**fp4, "strategy": "tensor_group", "group_size": 16},
            None,
        ),
        ("mxfp8-quantized", {**fp8, "strategy": "group", "group_size": 32}, None),
    ]
    for form, args, shape in kinds:
        args = args | ({"scale_dtype": "torch.uint8"} if form[:3] == "mxf" else {})
        own = QuantizationArgs(**args)
        scheme = QuantizationScheme(targets=["Linear"], weights=own)
        scales = rng.uniform(0.001, 0.02, shape or (N, K // own.group_size))
        state = {"weight": torch.from_numpy(rng.normal(0, 0.05, (N, K))).float()}
        if form[:3] == "mxf":
            scales = 2.0 ** np.floor(np.log2(scales))
        if form[:2] == "nv":
            scales = torch.from_numpy(scales * 2048).to(torch.float8_e4m3fn)
            state |= {"weight_global_scale": torch.tensor([2048.0])}
            state |= {"weight_scale": scales.float()}
        else:
            state |= {"weight_scale": torch.from_numpy(scales.astype(np.float32))}
        tool = BaseCompressor.get_value_from_registry(form)
        packed = tool.compress(state, scheme)
        wide = {
            k: v.float() if v.dtype == torch.float8_e4m3fn else v
            for k, v in packed.items()
            if form[:3] != "nvf" or k != "weight_packed"
        }
        weights = tool.decompress({**packed, **wide}, scheme)["weight"].float().numpy()
        parts = {
            k: (v.view(torch.uint8) if v.dtype == torch.float8_e4m3fn else v).numpy()
            for k, v in packed.items()
        }
        stated = {k: v for k, v in args.items() if k != "scale_dtype"}
        group = {"targets": ["Linear"], "weights": stated}
        settings = {"quant_method": "compressed-tensors", "format": form}
        yield _case({**settings, "config_groups": {"g": group}}, parts, weights)


def bitsandbytes(rng) -> Iterator[Case]:
    """Pack with bitsandbytes: nf4 and fp4, nested or not, and rows of int8."""
    import bitsandbytes.functional as tool
    import torch

    for kind, size, nested in (
        ("nf4", 64, False),
        ("nf4", 64, True),
        ("nf4", 128, True),
        ("fp4", 64, False),
    ):
        weight = torch.from_numpy(rng.normal(0, 0.05, (N, K))).float()
        packed, state = tool.quantize_4bit(
            weight, blocksize=size, compress_statistics=nested, quant_type=kind
        )
        weights = tool.dequantize_4bit(packed, state).numpy()
        parts = {f"weight.{k}": v.numpy() for k, v in state.as_dict(True).items()}
        settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        yield _case(settings, {"weight": packed.numpy(), **parts}, weights)
    codes = rng.integers(-127, 128, (N, K)).astype(np.int8)
    tops = (rng.integers(1, 200, N) * 127 / 1024).astype(np.float32)
    weights = tool.int8_vectorwise_dequant(
        torch.from_numpy(codes), torch.from_numpy(tops)
    )
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    parts = {"weight": codes, "SCB": tops, "weight_format": np.array(0, np.uint8)}
    yield _case(settings, parts, weights.numpy())


def hqq(rng) -> Iterator[Case]:
    """Pack with HQQ, both axes. Zeros are whole, so that all products are exact."""
    import torch
    from hqq.core.quantize import Quantizer
    from hqq.core.utils import encode_safetensor_type

    torch.cuda.empty_cache = lambda: None
    for bits in (1, 2, 3, 4, 8):
        for size, axis in ((32, 1), (64, 1), (128, 1), (32, 0)):
            weight = torch.from_numpy(rng.normal(0, 0.05, (N, K))).float()
            packed, meta = Quantizer.quantize(
                weight,
                nbits=bits,
                group_size=size,
                axis=axis,
                optimize=False,
                round_zero=True,
                device="cpu",
                compute_dtype=torch.float32,
            )
            meta["scale"] = meta["scale"].half().float()
            meta |= {"compute_dtype": torch.float32}
            weights = Quantizer.dequantize(packed, meta).numpy()
            meta["scale"] = meta["scale"].half()
            meta |= {"quant_scale": False, "quant_zero": False}
            parts = {k: encode_safetensor_type(v) for k, v in meta.items()}
            parts = {k: v.numpy() for k, v in parts.items()}
            settings = {"quant_method": "hqq", "quant_config": {"nbits": bits}}
            yield _case(settings, {"W_q": packed.numpy(), **parts}, weights)


TOOLS: dict[str, Callable[[Any], Iterator[Case]]] = {
    "auto-gptq": auto_gptq,
    "gptqmodel": gptqmodel,
    "autoawq": autoawq,
    "compressed-tensors": compressed_tensors,
    "compressed-tensors floats": compressed_tensors_floats,
    "bitsandbytes": bitsandbytes,
    "hqq": hqq,
    "auto-round": auto_round,
}
"""Package, and a further name, to the function that packs with it."""


def package_of(tool: str) -> str:
    """Return the name that a tool is imported by."""
    name = tool.partition(" ")[0]
    return {"autoawq": "awq"}.get(name, name.replace("-", "_"))


def save(file: Path, cases: Iterator[Case]) -> int:
    """Write cases to a file; return their number."""
    arrays: dict[str, np.ndarray] = {}
    for count, case in enumerate(cases, 1):
        arrays[f"{count}/settings"] = np.array(json.dumps(case.settings))
        arrays[f"{count}/digest"] = np.array(case.digest)
        arrays |= {f"{count}/parts/{k}": v for k, v in case.parts.items()}
    np.savez_compressed(file, **arrays)
    return count


def load(file: Path) -> Iterator[Case]:
    """Read the cases of a file."""
    with np.load(file) as arrays:
        for name in (n for n in arrays.files if n.endswith("/settings")):
            number = name.removesuffix("settings")
            start = f"{number}parts/"
            names = [n for n in arrays.files if n.startswith(start)]
            yield Case(
                json.loads(str(arrays[name])),
                {n.removeprefix(start): arrays[n] for n in names},
                str(arrays[f"{number}digest"]),
            )


if __name__ == "__main__":
    for tool in sys.argv[2:] or TOOLS:
        if importlib.util.find_spec(package_of(tool)):
            name, _, more = tool.partition(" ")
            path = Path(sys.argv[1], f"{name}-{version(name)}{more and '-'}{more}.npz")
            print(path, save(path, TOOLS[tool](np.random.default_rng(0))))

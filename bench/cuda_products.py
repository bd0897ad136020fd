"""Builds a folder that measures the CUDA kernels: python -m bench.cuda_products DIR

The folder holds machine code of kernels and what runs it, which needs a GPU of
architecture sm_90, PyTorch, numpy and the driver; mlx_nibble need not be there. To
build it takes the package nvidia-cuda-nvrtc, but no GPU. In the folder,

    python -m bench.cuda_run        # times products beside PyTorch's
    python -m bench.cuda_run_parts  # times what limits few rows
    python -m bench.cuda_run_many   # times hundreds of rows
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from bench import cuda_parts
from tests.cuda.nvrtc import compile_kernel
from tests.simt import plans
from tests.support.paths import ROOT

# All tiles at the usual format, and some at every other.
CHOSEN = re.compile(
    r"cuda_(qmm_skinny|dequantize)_bf16_bf16_b4_g64|"
    r"cuda_qmm_skinny_(bf16_(bf16_b1|e)|f16_e).*_(bm8_bn16_wk8|bm16_bn32_wk8)_|"
    r"cuda_dequantize_"
)
# Files of this checkout that run there.
COPIED = [
    ROOT / "bench" / f"{name}.py"
    for name in (
        *("__init__", "cuda_exact", "cuda_run"),
        *("cuda_run_parts", "cuda_run_many"),
    )
]
COPIED.append(ROOT / "python" / "mlx_nibble" / "floats.py")
NAME = re.compile(
    r"cuda_(?P<family>[a-z_]+)_(?P<dtype>b?f16)_[a-z0-9]+_b(?P<bits>\d)_g(?P<group>\d+)"
    r"(_(?P<mode>mxfp4|nvfp4|mxfp8))?(?P<numbers>(_[a-z]+\d+)*)"
)


def spec(kernel: str) -> dict[str, Any]:
    """Return what bench.cuda_run must know of a kernel."""
    match = NAME.fullmatch(kernel)
    assert match, kernel
    found: dict[str, Any] = match.groupdict()
    numbers = {k: int(v) for k, v in re.findall(r"_([a-z]+)(\d+)", found["numbers"])}
    found |= {n: int(found[n]) for n in ("bits", "group")} | {"kernel": kernel}
    found |= {"bm": numbers.get("bm", 0), "mode": found["mode"] or "affine"}
    # csrc/core/tiles.h has the same sizes.
    if found["family"] == "dequantize":
        return found | {"bn": 0, "threads": 256, "shared": 0}
    bm = numbers["bm"]
    if found["family"] == "qmm_wgmma":
        threads = 128 + 256 * numbers["pairs"]
        shared = 6 * (256 * 128 + 128 * 32) + 1024
        return found | {"bn": 128, "threads": threads, "shared": shared}
    bn, wk = numbers["bn"], numbers["wk"]
    return found | {"bn": bn, "threads": 32 * wk, "shared": 4 * bm * bn * wk}


def main() -> None:
    """Compile, and copy the other half."""
    parser = argparse.ArgumentParser("python -m bench.cuda_products")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    kernels = [k for k in plans.instances(cuda=True) if CHOSEN.match(k)]
    for kernel in kernels:
        cubin, _ = compile_kernel(plans.kernel_source(kernel), "sm_90")
        (folder / f"{kernel}.cubin").write_bytes(cubin)
    (folder / "kernels.json").write_text(json.dumps([spec(k) for k in kernels]))
    many = [k for k in plans.instances(cuda=True) if "_wgmma_" in k]
    for kernel in many:
        cubin, _ = compile_kernel(plans.kernel_source(kernel), "sm_90a")
        (folder / f"{kernel}.cubin").write_bytes(cubin)
    (folder / "many.json").write_text(json.dumps([spec(k) for k in many]))
    parts = cuda_parts.texts()
    for name, (text, _) in (parts | cuda_parts.wide_texts()).items():
        (folder / f"{name}.cubin").write_bytes(compile_kernel(text, "sm_90")[0])
    specs = [spec(kernel) | {"file": name} for name, (_, kernel) in parts.items()]
    (folder / "parts.json").write_text(json.dumps(specs))
    for path in COPIED:
        to = folder / path.parent.name
        to.mkdir(exist_ok=True)
        shutil.copy(path, to)


if __name__ == "__main__":
    main()

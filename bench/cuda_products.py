"""Builds a folder that measures the CUDA kernels: python -m bench.cuda_products DIR

The folder holds machine code of kernels and run.py, which needs a GPU of architecture
sm_90, PyTorch, numpy and the driver, and nothing of this project. To build it takes the
package nvidia-cuda-nvrtc, but no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from tests.cuda.nvrtc import compile_kernel
from tests.simt import plans
from tests.support.paths import ROOT

# All tiles at the usual format, and some at every other.
CHOSEN = re.compile(
    r"cuda_(qmm_skinny|dequantize)_bf16_bf16_b4_g64|"
    r"cuda_qmm_skinny_(bf16_(bf16_b1|e)|f16_e).*_(bm8_bn16_wk8|bm16_bn32)_|"
    r"cuda_dequantize_"
)
NAME = re.compile(
    r"cuda_(?P<family>[a-z_]+)_(?P<dtype>b?f16)_[a-z0-9]+_b(?P<bits>\d)_g(?P<group>\d+)"
    r"(_(?P<mode>mxfp4|nvfp4|mxfp8))?(?P<numbers>(_[a-z]+\d+)*)"
)


def spec(kernel: str) -> dict[str, Any]:
    """Return what run.py must know of a kernel."""
    match = NAME.fullmatch(kernel)
    assert match, kernel
    found: dict[str, Any] = match.groupdict()
    numbers = {k: int(v) for k, v in re.findall(r"_([a-z]+)(\d+)", found["numbers"])}
    found |= {n: int(found[n]) for n in ("bits", "group")} | {"kernel": kernel}
    found |= {"bm": numbers.get("bm", 0), "mode": found["mode"] or "affine"}
    # csrc/core/tiles.h has the same sizes.
    if found["family"] == "dequantize":
        return found | {"bn": 0, "threads": 256, "shared": 0}
    bm, wk = numbers["bm"], numbers["wk"]
    bn = numbers["bn"]
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
    shutil.copy(ROOT / "bench" / "cuda_run.py", folder / "run.py")


if __name__ == "__main__":
    main()

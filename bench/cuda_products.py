"""Builds a folder that measures the CUDA kernels: python -m bench.cuda_products DIR

The folder holds machine code of every tile and run.py, which needs a GPU of
architecture sm_90, PyTorch, numpy and the driver, and nothing of this project. To build
it takes the package nvidia-cuda-nvrtc, but no GPU.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from tests.cuda.nvrtc import compile_kernel
from tests.support.paths import ROOT

KERNELS = ROOT / "kernels"


def text(name: str, seen: set[str]) -> str:
    """Return a header of kernels/ with its includes pasted in."""
    if name in seen:
        return ""
    seen.add(name)
    lines = (KERNELS / name).read_text().replace("#pragma once", "")
    return re.sub(
        r'^#include "kernels/(.*)"$', lambda m: text(m[1], seen), lines, flags=re.M
    )


def tiles() -> list[list[int]]:
    """Return the numbers of each tile of csrc/core/tiles.h."""
    table = (ROOT / "csrc/core/tiles.h").read_text().split("kCudaTiles[] = {")[1]
    found = re.findall(r"\{(\d+(?:, \d+)+)\}", table.split("};")[0])
    unique = dict.fromkeys(tuple(map(int, tile.split(", "))) for tile in found)
    return [[*tile, 1][:6] for tile in unique]


def main() -> None:
    """Compile, and copy the other half."""
    parser = argparse.ArgumentParser("python -m bench.cuda_products")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for tile in tiles():
        numbers = ", ".join(map(str, tile[:5]))
        source = (
            text("cuda/qmm_skinny.h", set())
            + f"\nNIBBLE_MATMUL_KERNEL(k, {32 * tile[2]}, {tile[5]}, 4, 64, "
            + f"QmmSkinny<nibble::BFloat16, 4, 64, {numbers}>)\n"
        )
        cubin, _ = compile_kernel(source, "sm_90")
        (folder / f"{'_'.join(map(str, tile))}.cubin").write_bytes(cubin)
    shutil.copy(ROOT / "bench" / "cuda_run.py", folder / "run.py")


if __name__ == "__main__":
    main()

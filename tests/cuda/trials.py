"""Try kernels for CUDA on a GPU, each against float64: python -m tests.cuda.trials

Prints a line for each kernel that is wrong, and the number of those tried. With
--sanitize, NVIDIA's compute-sanitizer (memcheck, racecheck) watches some of each
family; it is slow.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time

from mlx_nibble import _native
from mlx_nibble.machine.trial import check

# Every tile at the usual format, and one of each family at the others.
SOME = (
    r"_bf16_bf16_b4_g64_|^cuda_qmm_wgmma_|"
    r"^cuda_qmm_skinny_(bf16|f16)_.*_bm8_bn16_wk8_|"
    r"^cuda_(gather|swiglu)_.*_bm8_bn16_|"
    r"^cuda_dequantize_"
)
# One of each tile, and the formats that decode in their own way.
WATCHED = (
    r"^cuda_.*_bf16_bf16_b4_g64_|^cuda_qmm_skinny_bf16_bf16_b[138]_g64_bm(8|64)_|"
    r"^cuda_.*_bf16_e\dm\d_.*_bm(8|64)_bn16|^cuda_dequantize_bf16"
)
TOOLS = ("memcheck", "racecheck")


def kernels(pattern: str) -> list[str]:
    """Return the kernels of this GPU whose names match."""
    ext = _native.ext
    if ext is None or not ext.has_gpu():
        sys.exit(
            "[trials] MLX's CUDA backend and a GPU are required but there is none."
        )
    found = [name for name in ext.kernels() if re.search(pattern, name)]
    return [ext.view_kernel, *found]


def try_all(pattern: str, seconds: float) -> int:
    """Try the kernels; return the number of wrong ones."""
    ext, begin = _native.ext, time.monotonic()
    assert ext is not None
    chosen = kernels(pattern)
    ext.compile_kernels(chosen)
    print(f"compiled {len(chosen)} in {time.monotonic() - begin:.1f} s", flush=True)
    tried = wrong = 0
    for name in chosen:
        if time.monotonic() - begin > seconds:
            print(f"stopped before {name}")
            break
        verdict = check(name, ext)
        tried += verdict is not None
        if verdict is not None and not verdict.ok:
            wrong += 1
            print(f"{name}: {verdict.failure}", flush=True)
    print(f"{tried} of {len(chosen)} kernels tried, {wrong} wrong")
    return wrong


def watch(tool: str, pattern: str, seconds: float) -> int:
    """Try the kernels under a tool of compute-sanitizer."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        sys.exit("[trials] compute-sanitizer was required but it is not on the PATH.")
    return subprocess.run(
        [
            program,
            *("--tool", tool, "--error-exitcode", "9", "--print-limit", "5"),
            # MLX asks CUDA for what may not be there, and goes on.
            *("--report-api-errors", "no"),
            *(sys.executable, "-m", "tests.cuda.trials", "--pattern", pattern),
            *("--seconds", str(seconds)),
        ]
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.trials")
    parser.add_argument("--pattern", help="of kernels' names")
    parser.add_argument("--seconds", type=float, default=300, help="stop after this")
    parser.add_argument("--sanitize", choices=TOOLS, help="watch with this tool")
    args = parser.parse_args()
    if args.sanitize:
        return watch(args.sanitize, args.pattern or WATCHED, args.seconds)
    return try_all(args.pattern or SOME, args.seconds) > 0


if __name__ == "__main__":
    sys.exit(main())

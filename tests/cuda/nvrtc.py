"""The kernels for CUDA as the extension has them compiled, but without a GPU."""

from __future__ import annotations

from tests.simt import cuda_build

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")


def compile_kernel(text: str, architecture: str) -> tuple[bytes, str]:
    """Return the machine code of a text, and what the assembler says about it.

    Raises:
        CompileError: NVRTC refuses the text; the message is its log.
    """
    # csrc/cuda/library.cpp gives the first two.
    options = [f"--gpu-architecture={architecture}", "--std=c++20"]
    return cuda_build.compile_text(text, [*options, "--ptxas-options=-v"])
